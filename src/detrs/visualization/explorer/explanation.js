/* The payload with the questions that the page asks: boxes and scores of queries, and the views by mode. */

const SAME_OBJECT = 0.5; // smallest IoU
const QUANTITIES = { score: "score", x: "center x", y: "center y", w: "width", h: "height" };

class Explanation {
  constructor(json) {
    this.json = json;
    this.width = json.image.width;
    this.height = json.image.height;
    this.detections = json.detections;
    this.layers = json.layers.map((layer) => ({
      reference: numbers(layer.reference),
      boxes: numbers(layer.boxes),
      scores: numbers(layer.scores),
      labels: numbers(layer.labels),
      detectionScores: numbers(layer.detection_scores),
    }));
    this.last = this.layers.length - 1;
    this.numQueries = this.layers.length ? this.layers[0].boxes.shape[0] : 0;
    this.modes = modesOf(json);
  }

  /** Name of a class; the label is shown where the name is missing. */
  name(label) {
    return this.json.classes[label] ?? `class ${label}`;
  }

  /** (cx, cy, w, h) in [0, 1] as corners in pixels. */
  corners(cx, cy, w, h) {
    return [(cx - w / 2) * this.width, (cy - h / 2) * this.height, (cx + w / 2) * this.width, (cy + h / 2) * this.height];
  }

  /** Corners of the box of a query after a layer. */
  box(layer, query) {
    return this.corners(...this.layers[layer].boxes.slice(query));
  }

  /** Reference of a query before a layer: {x, y, box or null} in pixels; null for detectors without references. */
  reference(layer, query) {
    const { reference } = this.layers[layer];
    if (!reference || !reference.shape[1]) return null;
    const values = reference.slice(query);
    const box = values.length === 4 ? this.corners(...values) : null;
    return { x: values[0] * this.width, y: values[1] * this.height, box };
  }

  score(layer, query) {
    return this.layers[layer].scores.get(query);
  }

  label(layer, query) {
    return Math.round(this.layers[layer].labels.get(query));
  }

  /** Indices of the detections that a query gave. */
  detectionsOf(query) {
    return this.detections.flatMap((each, index) => (each.query === query ? [index] : []));
  }

  /** Index of the detection of a class with the largest IoU with a box; null if none has `SAME_OBJECT`. */
  detectionAt(name, corners) {
    const ious = this.detections.map((each) => (each.name === name ? iou(each.box_xyxy, corners) : 0));
    const best = Math.max(0, ...ious);
    return best >= SAME_OBJECT ? ious.indexOf(best) : null;
  }

  /** What a query found, as text. */
  describe(query) {
    return `${this.name(this.label(this.last, query))} ${this.score(this.last, query).toFixed(2)}`;
  }
}

/** The modes of the page: boxes, one per group of views, gradients. `entries` are the layers (or blocks) of a mode. */
function modesOf(json) {
  const modes = [];
  if (json.layers.length) {
    modes.push({
      key: "boxes",
      kind: "boxes",
      stage: "decoder",
      label: "Boxes",
      entries: json.layers.map((_, layer) => ({ label: String(layer + 1), layer })),
      selects: "query",
    });
  }
  const groups = new Map();
  for (const view of json.views) {
    const others = json.views.filter((other) => ["kind", "stage", "layer"].every((name) => other[name] === view[name]));
    const named = others.some((other) => pattern(other) !== pattern(view)) ? pattern(view) : ""; // two modules in a layer
    const key = [view.stage, view.kind, named].filter(Boolean).join("-");
    if (!groups.has(key)) groups.set(key, { key, named, views: [] });
    groups.get(key).views.push(view);
  }
  for (const { key, named, views } of groups.values()) {
    const [first] = views;
    modes.push({
      key,
      kind: first.kind,
      stage: first.stage,
      label: named ? `${labelOf(first)}: ${named}` : labelOf(first),
      entries: views.map((view, index) => entryOf(view, index)),
      selects: first.kind === "points" ? "nothing" : first.grid ? "pixel" : "query",
    });
  }
  if (json.gradients.length) {
    const entries = Object.entries(QUANTITIES).map(([quantity, label]) => ({ label, quantity }));
    modes.push({ key: "gradients", kind: "gradients", stage: "image", label: "Gradients", entries, selects: "detection" });
  }
  return modes;
}

/** Name of the module of a view without the numbers of layers. */
function pattern(view) {
  return view.name.replace(/\d+/g, "*");
}

/** Text of the button of a group of views. */
function labelOf(view) {
  if (view.kind === "sampling") return view.stage === "encoder" ? "Encoder sampling" : "Decoder sampling";
  if (view.kind === "attention") return view.stage === "encoder" ? "Encoder self-attention" : "Cross-attention";
  if (view.kind === "region") return view.stage === "decoder" ? "RoIs" : `RoIs, ${view.stage}`;
  return view.stage === "backbone" ? "Backbone sampling" : `Sampled points, ${view.stage}`;
}

/** One layer or block of a mode with its arrays. */
function entryOf(view, index) {
  const entry = { view, layer: view.layer ?? index, label: entryLabel(view, index), title: view.name };
  for (const name of ["locations", "weights", "maximum", "boxes", "responses", "points"]) entry[name] = numbers(view[name]);
  entry.rows = new Map((view.queries ?? []).map((query, row) => [query, row]));
  if (entry.locations) [, entry.numHeads, entry.numLevels] = entry.locations.shape;
  else if (view.kind === "attention") entry.numHeads = entry.weights.shape[1];
  else if (view.kind === "points") entry.numHeads = entry.points.shape[0];
  return entry;
}

/** Number of a layer; for blocks of a backbone, the numbers of stage and block in the name of the module. */
function entryLabel(view, index) {
  const numbers = view.kind === "points" ? view.name.match(/\d+/g) : null;
  return numbers ? numbers.join(".") : String((view.layer ?? index) + 1);
}
