/* Elements of the page. Texts are set as text, never as HTML: class and file names come from outside. */

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (`on...` are listeners, null is omitted) and children (elements or texts). */
function element(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "color") node.style.setProperty("--color", value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

/** A row of buttons of which one is pressed; a select where there are many. `options`: [{value, label, title, color}]. */
function choice(name, label, options, current, onChoose) {
  if (options.length > 10) {
    const select = element("select", { id: `choice-${name}`, "aria-label": label, onchange: () => onChoose(options[select.selectedIndex].value) });
    select.append(...options.map((each) => element("option", { selected: each.value === current }, each.label)));
    return element("div", { class: "choice", "data-choice": name }, element("span", { class: "caption" }, label), select);
  }
  const buttons = options.map((each) =>
    element(
      "button",
      {
        type: "button",
        "data-value": String(each.value),
        "aria-pressed": String(each.value === current),
        title: each.title,
        color: each.color,
        class: each.color ? "swatch" : null,
        onclick: () => onChoose(each.value),
      },
      each.label,
    ),
  );
  const group = element("div", { class: "buttons", role: "group", "aria-label": label }, ...buttons);
  return element("div", { class: "choice", "data-choice": name }, element("span", { class: "caption" }, label), group);
}
