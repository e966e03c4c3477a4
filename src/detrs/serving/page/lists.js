/* The list of images, the classes, and the table of detections. */

import { byId, counted, element } from "./elements.js";

const STATES = {
  queued: () => "queued",
  running: () => "detecting …",
  busy: () => "server is busy …",
  failed: () => "not accepted",
  done: (image, shown) => counted(shown(image).length, "detection"),
};

/** Entries of the images; each entry keeps its thumbnail. `shown(image)`: the detections that are shown. */
export function renderImages(images, selected, shown, onSelect) {
  byId("images").hidden = images.length === 0;
  const entries = images.map((image) => {
    image.entry ??= imageEntry(image, onSelect);
    image.entry.className = image.status;
    image.entry.querySelector(".state").textContent = STATES[image.status](image, shown);
    const button = image.entry.firstChild;
    if (image === selected) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    return image.entry;
  });
  const list = byId("image-list");
  if (list.children.length !== entries.length || entries.some((entry, i) => list.children[i] !== entry)) {
    list.replaceChildren(...entries);
  }
}

function imageEntry(image, onSelect) {
  image.thumbnail = element("canvas", { "aria-hidden": "true" });
  image.thumbnail.width = 0;
  const name = element("span", { class: "name", title: image.file.name }, image.file.name);
  const button = element("button", { type: "button", onclick: () => onSelect(image) }, image.thumbnail, name, element("span", { class: "state" }));
  return element("li", {}, button);
}

/** A small copy of an image; formats that the browser cannot decode have none. */
export async function drawThumbnail(image) {
  try {
    const bitmap = await createImageBitmap(image.file, { resizeWidth: 240, resizeQuality: "medium" });
    Object.assign(image.thumbnail, { width: bitmap.width, height: bitmap.height });
    image.thumbnail.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
  } catch {
    image.thumbnail.hidden = true;
  }
}

/** A button for each class with a detection above the threshold in any image, and for each hidden class. */
export function renderClasses(settings, images, selected, state, onToggle) {
  const above = (image) => (image?.detections ?? []).filter((each) => each.score >= state.threshold);
  const found = new Set(images.flatMap((image) => above(image).map((each) => each.name)));
  const here = new Map();
  for (const { name } of above(selected)) here.set(name, (here.get(name) ?? 0) + 1);
  const focused = document.activeElement?.dataset?.class;
  const names = settings.classes.map((each) => each.name).filter((name) => found.has(name) || state.hidden.has(name));
  byId("classes").replaceChildren(
    ...names.map((name) =>
      element(
        "button",
        { type: "button", "data-class": name, "aria-pressed": String(!state.hidden.has(name)), title: `Show ${name}`, color: settings.colors(name)[0], onclick: () => onToggle(name) },
        element("span", { class: "dot" }),
        element("span", { class: "name" }, name),
        element("small", {}, String(here.get(name) ?? 0)),
      ),
    ),
  );
  if (focused !== undefined) [...byId("classes").children].find((each) => each.dataset.class === focused)?.focus();
}

/** The table. `on`: {hover(detection | null), open(detection)}. */
export function renderTable(settings, image, detections, active, on) {
  const focused = document.activeElement?.closest?.("#rows") ? active : null;
  byId("rows").replaceChildren(
    ...detections.map((each) => {
      const button = element("button", { type: "button", onfocus: () => on.hover(each), title: settings.explain === null ? "Explain this detection" : null }, element("span", { class: "dot", color: settings.colors(each.name)[0] }), each.name);
      const row = element(
        "tr",
        { "aria-current": each === active ? "true" : null, onmouseenter: () => on.hover(each), onmouseleave: () => on.hover(null), onclick: () => on.open(each) },
        element("td", {}, button),
        element("td", { class: "number" }, each.score.toFixed(3)),
        element("td", { class: "number" }, each.box_xyxy.map((value) => value.toFixed(0)).join(", ")),
      );
      return row;
    }),
  );
  if (focused) rowOf(detections, focused)?.querySelector("button").focus({ preventScroll: true });
  byId("panel-note").textContent = note(image, detections);
}

/** Marks the row of the active detection, and scrolls to it. */
export function markRow(detections, active, scroll) {
  [...byId("rows").children].forEach((row, i) => {
    if (detections[i] === active) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  });
  if (scroll) rowOf(detections, active)?.scrollIntoView({ block: "nearest" });
}

function rowOf(detections, detection) {
  return byId("rows").children[detections.indexOf(detection)] ?? null;
}

function note(image, detections) {
  if (!image) return "Detections of the selected image are listed here.";
  if (image.status !== "done" || detections.length) return "";
  const best = image.detections[0];
  return best ? `No detection is shown. The highest score is ${best.score.toFixed(3)} (${best.name}).` : "No detections.";
}
