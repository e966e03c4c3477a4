/* The bar above the image: mode, layer, head, level and how they are drawn. */

/** Fields that the controls show, apart from the opacity: a slider must not be replaced while it is dragged. */
const CONTROLLED = ["mode", "entry", "head", "level", "color", "map", "smooth"];

/** The controls of a state; `update` receives the changed fields. */
function controls(explanation, state, update) {
  const mode = explanation.modes.find((each) => each.key === state.mode);
  if (!mode) return [];
  const entry = mode.entries[state.entry];
  const modes = explanation.modes.map((each) => ({ value: each.key, label: each.label }));
  const parts = [choice("mode", "View", modes, state.mode, (value) => update(switchMode(explanation, state, value)))];
  const entries = mode.entries.map((each, value) => ({ value, label: each.label, title: each.title }));
  if (entries.length > 1) parts.push(choice("layer", entryCaption(mode), entries, state.entry, (value) => update({ entry: value })));
  if (entry.numHeads > 1) {
    parts.push(choice("head", mode.kind === "points" ? "Group" : "Head", series(entry.numHeads, state.color === "head" || mode.kind === "points"), state.head, (head) => update({ head })));
  }
  if (entry.numLevels > 1) {
    const levels = series(entry.numLevels, state.color === "level");
    (entry.view.shapes ?? []).forEach(([height, width], i) => (levels[i + 1].title = `${height} x ${width}`));
    parts.push(choice("level", "Level", levels, state.level, (level) => update({ level })));
  }
  if (mode.kind === "sampling") {
    const colors = [["level", "level"], ["head", "head"], ["weight", "weight"]].map(([value, label]) => ({ value, label }));
    parts.push(choice("color", "Color by", colors, state.color, (color) => update({ color })));
  }
  if (["attention", "gradients"].includes(mode.kind) || entry.responses) {
    parts.push(choice("map", "Colors", ["inferno", "viridis", "cividis"].map((map) => ({ value: map, label: map })), state.map, (map) => update({ map })));
    const filters = [{ value: true, label: "bilinear" }, { value: false, label: "nearest" }];
    parts.push(choice("smooth", "Pixels", filters, state.smooth, (smooth) => update({ smooth })));
  }
  if (mode.kind !== "boxes") parts.push(opacitySlider(state, update));
  return parts;
}

function entryCaption(mode) {
  return mode.kind === "gradients" ? "Of" : mode.kind === "points" ? "Block" : "Layer";
}

/** "all" and the numbers of heads or levels, with their colors where they are drawn in them. */
function series(count, colored) {
  const single = Array.from({ length: count }, (_, i) => ({ value: i, label: String(i + 1), color: colored ? seriesColor(i) : null }));
  return [{ value: null, label: "all" }, ...single];
}

function opacitySlider(state, update) {
  const slider = element("input", { type: "range", id: "opacity", min: 0, max: 1, step: 0.05, value: state.opacity, "aria-label": "Opacity" });
  slider.addEventListener("input", () => update({ opacity: Number(slider.value) }));
  return element("div", { class: "choice", "data-choice": "opacity" }, element("span", { class: "caption" }, "Opacity"), slider);
}

/** Fields that change with the mode: the last layer is shown first, and a pixel or a detection is chosen where needed. */
function switchMode(explanation, state, key) {
  const from = explanation.modes.find((each) => each.key === state.mode);
  const to = explanation.modes.find((each) => each.key === key);
  if (!to) return {};
  const same = from && from.selects === to.selects && from.entries.length === to.entries.length && to.kind !== "gradients";
  const changes = { mode: key, entry: same ? state.entry : null };
  const detection = state.query === null && explanation.detections.length ? 0 : state.detection;
  if (to.selects === "query" && to.kind !== "boxes") changes.detection = detection;
  if (to.selects === "detection" && state.detection === null && explanation.detections.length) changes.detection = 0;
  if (to.selects === "pixel" && !state.pixel) changes.pixel = startPixel(explanation, state);
  return changes;
}

/** The center of the selected detection, or of the image. */
function startPixel(explanation, state) {
  const detection = explanation.detections[state.detection ?? 0];
  if (!detection) return { x: 0.5, y: 0.5 };
  const [x0, y0, x1, y1] = detection.box_xyxy;
  return { x: clampUnit((x0 + x1) / 2 / explanation.width), y: clampUnit((y0 + y1) / 2 / explanation.height) };
}
