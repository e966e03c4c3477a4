/* What is shown, as one plain object, and its form in the fragment of the address, so that a view can be linked. */

const INITIAL = {
  mode: "boxes",
  entry: null, // null: the last layer
  head: null, // null: all
  level: null, // null: all
  query: null,
  detection: null,
  pixel: null, // {x, y} in [0, 1]
  color: "level",
  map: "inferno",
  smooth: true,
  opacity: 0.85,
  dots: false,
  tab: "detections",
  search: "",
  theme: "",
  zoom: 1,
  center: null, // {x, y} in [0, 1]
};

const POINT_FIELDS = ["pixel", "center"];
const NUMBER_FIELDS = ["entry", "head", "level", "query", "detection", "opacity", "zoom"];
const FLAG_FIELDS = ["smooth", "dots"];

/** The state as a fragment; fields with their initial value are omitted. */
function toHash(state) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value === INITIAL[name] || value === null) continue;
    if (POINT_FIELDS.includes(name)) parameters.set(name, `${value.x.toFixed(4)},${value.y.toFixed(4)}`);
    else if (FLAG_FIELDS.includes(name)) parameters.set(name, value ? "1" : "0");
    else if (name === "zoom") parameters.set(name, value.toFixed(3));
    else parameters.set(name, String(value));
  }
  return parameters.toString();
}

/**
 * The state of a fragment; unknown fields and values that are out of range are ignored. `name` and `box` (corners in
 * pixels) select the detection of this class that is nearest to the box.
 */
function fromHash(hash, explanation) {
  const state = { ...INITIAL };
  const parameters = new URLSearchParams(hash.replace(/^#/, ""));
  if (parameters.has("box")) state.detection = explanation.detectionAt(parameters.get("name"), parameters.get("box").split(",").map(Number));
  for (const [name, text] of parameters) {
    if (!(name in INITIAL)) continue;
    if (POINT_FIELDS.includes(name)) {
      const [x, y] = text.split(",").map(Number);
      if (x >= 0 && x <= 1 && y >= 0 && y <= 1) state[name] = { x, y };
    } else if (NUMBER_FIELDS.includes(name)) {
      if (text !== "" && Number.isFinite(Number(text))) state[name] = Number(text);
    } else if (FLAG_FIELDS.includes(name)) {
      state[name] = text === "1";
    } else {
      state[name] = text;
    }
  }
  return valid(state, explanation);
}

/** `state` with every field in range for this explanation: another mode has other layers, heads and levels. */
function valid(state, explanation) {
  const fixed = { ...state };
  const mode = explanation.modes.find((each) => each.key === fixed.mode) ?? explanation.modes[0];
  const count = mode ? mode.entries.length : 0;
  fixed.mode = mode ? mode.key : "";
  fixed.entry = inRange(fixed.entry, count);
  if (fixed.entry === null) fixed.entry = mode && mode.kind === "gradients" ? 0 : Math.max(count - 1, 0);
  const entry = mode ? mode.entries[fixed.entry] : {};
  fixed.head = inRange(fixed.head, entry.numHeads ?? 0);
  fixed.level = inRange(fixed.level, entry.numLevels ?? 0);
  fixed.detection = inRange(fixed.detection, explanation.detections.length);
  fixed.query = fixed.detection === null ? inRange(fixed.query, explanation.numQueries) : explanation.detections[fixed.detection].query;
  if (!["level", "head", "weight"].includes(fixed.color)) fixed.color = "level";
  if (!["inferno", "viridis", "cividis"].includes(fixed.map)) fixed.map = INITIAL.map;
  if (!["detections", "queries"].includes(fixed.tab)) fixed.tab = INITIAL.tab;
  if (!["", "light", "dark"].includes(fixed.theme)) fixed.theme = "";
  fixed.opacity = Math.min(Math.max(fixed.opacity, 0), 1);
  fixed.zoom = Math.min(Math.max(fixed.zoom, 1), MAX_ZOOM);
  return fixed;
}

/** `index` if it is an index of `count` items, else null. */
function inRange(index, count) {
  return Number.isInteger(index) && index >= 0 && index < count ? index : null;
}
