/* Elements of the page. Texts are set as text, never as HTML: file and class names come from outside. */

/** An element with attributes (`on...` are listeners, null and false are omitted) and children (elements or texts). */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "color") node.style.setProperty("--color", value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

/** "1 image", "3 images". */
export function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : noun === "class" ? "es" : "s"}`;
}

/** Saves a blob as a file of the user. */
export function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** The name of a file without folder and extension. */
export function stem(name) {
  return name.replace(/^.*[\\/]/, "").replace(/\.[^.]*$/, "") || "image";
}
