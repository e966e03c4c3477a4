/* From the state to the marks on the image: points, maps, boxes. No drawing, no page. All lengths in pixels of the image. */

/**
 * The marks of a state: {heat, points, arrows, boxes, path, anchor, cell, summary, missing}.
 * `missing` explains why there is nothing to draw, `summary` describes what is drawn.
 */
function marksOf(explanation, state) {
  const mode = explanation.modes.find((each) => each.key === state.mode);
  const marks = { heat: null, points: null, arrows: null, boxes: [], path: null, anchor: null, cell: null, summary: "", missing: "" };
  if (!mode) return { ...marks, missing: "The payload has no layers and no views." };
  const entry = mode.entries[state.entry];
  addDetections(marks, explanation, state, mode);
  if (mode.selects === "query" && state.query !== null) addQuery(marks, explanation, state, entry);
  const add = { boxes: addPath, sampling: addSampling, attention: addAttention, region: addRegion, points: addPoints, gradients: addGradients };
  add[mode.kind](marks, explanation, state, entry, mode);
  return marks;
}

/** The boxes of all detections; the selected one is drawn by `addQuery` where a layer has its own box. */
function addDetections(marks, explanation, state, mode) {
  explanation.detections.forEach((detection, index) => {
    const selected = index === state.detection;
    if (selected && mode.selects === "query") return;
    const faint = mode.kind !== "boxes" || state.query !== null;
    marks.boxes.push({
      corners: detection.box_xyxy,
      label: detection.label,
      text: `${detection.name} ${detection.score.toFixed(2)}`,
      role: selected ? "selected" : faint ? "faint" : "detection",
      detection: index,
    });
  });
}

/** The box of the selected query after the layer, and its reference before it. */
function addQuery(marks, explanation, state, entry) {
  if (entry.layer > explanation.last) return;
  // A detection can be of another class than the best one of its query; with Faster R-CNN it then has another box, too.
  const own = entry.layer === explanation.last && state.detection !== null ? explanation.detections[state.detection] : null;
  const best = explanation.label(entry.layer, state.query);
  const label = own ? own.label : best;
  const score = own ? own.score : explanation.score(entry.layer, state.query);
  const corners = own && own.label !== best ? own.box_xyxy : explanation.box(entry.layer, state.query);
  const text = `${explanation.name(label)} ${score.toFixed(2)}`;
  const reference = explanation.reference(entry.layer, state.query);
  if (reference) {
    marks.anchor = { x: reference.x, y: reference.y };
    if (reference.box) marks.boxes.push({ corners: reference.box, label, text: "", role: "reference", detection: null });
  }
  marks.boxes.push({ corners, label, text, role: "selected", detection: state.detection });
}

/** The boxes of the selected query after every layer, with the path of their centers. */
function addPath(marks, explanation, state, entry) {
  if (state.query === null) {
    const count = explanation.detections.length;
    marks.summary = count ? `${counted(count, "detection")}. Select one to follow its box over the layers.` : "No detection reaches the threshold.";
    return;
  }
  const corners = explanation.layers.map((_, layer) => explanation.box(layer, state.query));
  const start = explanation.reference(0, state.query);
  const centers = corners.map(([x0, y0, x1, y1]) => ({ x: (x0 + x1) / 2, y: (y0 + y1) / 2 }));
  if (start) centers.unshift({ x: start.x, y: start.y });
  marks.path = { corners, centers, current: entry.layer, label: explanation.label(explanation.last, state.query) };
  marks.summary = `Query ${state.query} after layer ${entry.layer + 1} of ${explanation.layers.length}`;
}

/** Row of the entry's arrays for the selected query or pixel; null with the reason in `marks.missing`. */
function rowOf(marks, explanation, state, entry, mode) {
  if (mode.selects === "pixel") {
    const { width, height } = entry.view.grid;
    if (!state.pixel) {
      marks.missing = "Click a pixel of the image.";
      return null;
    }
    const column = Math.min(Math.floor(state.pixel.x * width), width - 1);
    const row = Math.min(Math.floor(state.pixel.y * height), height - 1);
    const [w, h] = [explanation.width / width, explanation.height / height];
    marks.cell = { corners: [column * w, row * h, (column + 1) * w, (row + 1) * h], column, row };
    marks.anchor = { x: (column + 0.5) * w, y: (row + 0.5) * h };
    return row * width + column;
  }
  if (state.query === null) {
    marks.missing = "Select a detection or a query.";
    return null;
  }
  const row = entry.rows.get(state.query);
  if (row === undefined) {
    const total = explanation.numQueries;
    marks.missing = `Query ${state.query} is not stored in this view: the file has the ${entry.rows.size} best of ${total} queries.`;
    return null;
  }
  return row;
}

/** Sampling points of a row: position, weight, head and level of each, heaviest last. */
function addSampling(marks, explanation, state, entry, mode) {
  const row = rowOf(marks, explanation, state, entry, mode);
  if (row === null) return;
  const [, heads, levels, each] = entry.locations.shape;
  const locations = entry.locations.slice(row);
  const weights = entry.weights.slice(row);
  const scale = entry.maximum ? entry.maximum.at(row) : 1;
  const points = [];
  for (let i = 0; i < weights.length; i++) {
    const head = Math.floor(i / (levels * each));
    const level = Math.floor(i / each) % levels;
    points.push({
      x: locations[2 * i] * explanation.width,
      y: locations[2 * i + 1] * explanation.height,
      weight: weights[i] * scale,
      head,
      level,
      hidden: (state.head !== null && head !== state.head) || (state.level !== null && level !== state.level),
    });
  }
  const shown = points.filter((point) => !point.hidden);
  const sampled = new Set(points.filter((point) => point.weight > 0).map((point) => point.level));
  const count = shown.filter((point) => sampled.has(point.level)).length; // convolutions skip levels
  const sum = (list) => list.reduce((total, point) => total + point.weight, 0);
  const chosen = state.head === null ? points : points.filter((point) => point.head === state.head);
  const whole = sum(chosen) / (state.head === null ? heads : 1) || 1; // of one head: 1 for softmax, but not for modulation
  const best = shown.reduce((a, b) => (b.weight > a.weight ? b : a));
  marks.points = { all: points, maximum: best.weight };
  marks.summary =
    `${subject(marks, state)}: ${count} points with ${percent(sum(shown) / sum(chosen) || 0)} of the weight. ` +
    `Largest: ${percent(best.weight / whole)} at head ${best.head + 1}, level ${best.level + 1}, (${Math.round(best.x)}, ${Math.round(best.y)}).`;
}

/** Attention of a row as a map: one head, or the mean of all. */
function addAttention(marks, explanation, state, entry, mode) {
  const row = rowOf(marks, explanation, state, entry, mode);
  if (row === null) return;
  const [, heads, height, width] = entry.weights.shape;
  const chosen = state.head === null ? [...Array(heads).keys()] : [state.head];
  const values = new Float32Array(height * width);
  for (const head of chosen) {
    const scale = maximumOf(entry, row, head) / chosen.length;
    entry.weights.slice(row, head).forEach((value, i) => (values[i] += value * scale));
  }
  marks.heat = heatOf(values, height, width, [0, 0, explanation.width, explanation.height]);
  const { maximum, peak } = marks.heat;
  marks.summary =
    `${subject(marks, state)}: attention over ${height} x ${width} tokens, ${state.head === null ? `mean of ${heads} heads` : `head ${state.head + 1}`}. ` +
    `Largest: ${percent(maximum)} at (${Math.round(peak.x)}, ${Math.round(peak.y)}).`;
}

/** The factor of stored weights: per row, or per row and head. */
function maximumOf(entry, row, head) {
  if (!entry.maximum) return 1;
  return entry.maximum.shape.length > 1 ? entry.maximum.get(row, head) : entry.maximum.get(row);
}

/** The region of the selected query with its responses. */
function addRegion(marks, explanation, state, entry, mode) {
  const row = rowOf(marks, explanation, state, entry, mode);
  if (row === null) return;
  const corners = explanation.corners(...entry.boxes.slice(row));
  marks.boxes.push({ corners, label: null, text: "", role: "region", detection: null });
  const [w, h] = [corners[2] - corners[0], corners[3] - corners[1]];
  marks.summary = `${subject(marks, state)}: region of ${Math.round(w)} x ${Math.round(h)} pixels`;
  if (!entry.responses) return;
  const size = entry.responses.shape[1];
  const values = entry.responses.slice(row).map((value) => value * maximumOf(entry, row, 0));
  marks.heat = heatOf(values, size, size, corners);
  marks.summary += `, responses on a grid of ${size} x ${size}, largest ${short(marks.heat.maximum)}.`;
}

/** Points that a backbone samples, with lines from the cells of a regular grid. */
function addPoints(marks, explanation, state, entry) {
  const [groups, height, width] = entry.points.shape;
  const flat = entry.points.slice();
  const arrows = [];
  for (let i = 0; i < groups * height * width; i++) {
    const [group, row, column] = [Math.floor(i / (height * width)), Math.floor(i / width) % height, i % width];
    arrows.push({
      from: { x: ((column + 0.5) / width) * explanation.width, y: ((row + 0.5) / height) * explanation.height },
      x: flat[2 * i] * explanation.width,
      y: flat[2 * i + 1] * explanation.height,
      head: group,
      hidden: state.head !== null && group !== state.head,
    });
  }
  const shown = arrows.filter((each) => !each.hidden);
  marks.arrows = { all: arrows, cell: Math.min(explanation.width / width, explanation.height / height) };
  marks.summary = `${shown.length} sampled points: ${groups} groups of ${height} x ${width}. ${entry.view.name}`;
}

/** Norm of the gradient of a quantity of the selected detection with respect to the image. */
function addGradients(marks, explanation, state, entry) {
  const found = explanation.json.gradients.find((each) => each.detection === state.detection);
  if (!found) {
    const stored = explanation.json.gradients.length;
    marks.missing = state.detection === null ? "Select a detection." : `The file has gradients of the best ${stored === 1 ? "detection" : counted(stored, "detection")} (--gradients).`;
    return;
  }
  const array = numbers(found[entry.quantity]);
  const [height, width] = array.shape;
  const maximum = found.maximum[entry.quantity]; // of the stored values, which are relative to it
  marks.heat = heatOf(array.slice().map((value) => value * maximum), height, width, [0, 0, explanation.width, explanation.height]);
  marks.heat.fine = true;
  marks.summary = `Gradient norm of the ${entry.label} of detection ${state.detection + 1}, largest ${short(maximum)}.`;
}

/** "1 detection", "2 detections". */
function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** A map with its largest value and where that lies. */
function heatOf(values, height, width, corners) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  const [x0, y0, x1, y1] = corners;
  const peak = {
    x: x0 + (((best % width) + 0.5) / width) * (x1 - x0),
    y: y0 + ((Math.floor(best / width) + 0.5) / height) * (y1 - y0),
  };
  return { values, height, width, corners, maximum: values[best], peak };
}

function subject(marks, state) {
  return marks.cell ? `Token (${marks.cell.column}, ${marks.cell.row})` : `Query ${state.query}`;
}

function percent(value) {
  const hundred = 100 * value;
  return `${hundred >= 10 ? hundred.toFixed(0) : hundred.toPrecision(2)}%`;
}

/** Three digits, with an exponent for small numbers. */
function short(value) {
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2) : value.toPrecision(3);
}
