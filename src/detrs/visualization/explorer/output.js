/* Animation between layers, and the view as an image file. */

/** Marks between those of two layers: points and boxes move, maps change at once. */
function between(from, to, t) {
  const mix = (a, b) => a + (b - a) * t;
  const marks = { ...to };
  if (from.points && to.points && from.points.all.length === to.points.all.length) {
    const all = to.points.all.map((point, i) => {
      const old = from.points.all[i];
      return { ...point, x: mix(old.x, point.x), y: mix(old.y, point.y), weight: mix(old.weight, point.weight) };
    });
    marks.points = { all, maximum: mix(from.points.maximum, to.points.maximum) };
  }
  if (from.anchor && to.anchor) marks.anchor = { x: mix(from.anchor.x, to.anchor.x), y: mix(from.anchor.y, to.anchor.y) };
  marks.boxes = to.boxes.map((box) => {
    const old = box.role === "selected" || box.role === "reference" ? from.boxes.find((other) => other.role === box.role) : null;
    return old ? { ...box, corners: box.corners.map((value, i) => mix(old.corners[i], value)) } : box;
  });
  return marks;
}

/** The visible part of the image with its marks and a caption, at least 1600 pixels wide. */
function exportCanvas(explanation, decorated, image, marks, state, caption) {
  const stage = byId("canvas");
  const visible = frameOf(state, explanation, stage.width, stage.height, 1);
  const [left, top] = [Math.max(-visible.x, 0), Math.max(-visible.y, 0)];
  const width = Math.min(stage.width, visible.width * visible.scale);
  const height = Math.min(stage.height, visible.height * visible.scale);
  const factor = Math.max(1, 1600 / width);
  const unit = factor * (stage.width / stage.clientWidth);
  const bar = Math.round(34 * unit);
  const target = element("canvas", { width: Math.round(width * factor), height: Math.round(height * factor) + bar });
  const context = target.getContext("2d");
  const frame = decorated({ ...visible, scale: visible.scale * factor, unit, x: -left * factor, y: -top * factor });
  drawScene(context, frame, image, marks, state);
  context.fillStyle = "#16191d";
  context.fillRect(0, target.height - bar, target.width, bar);
  context.fillStyle = "#e8eaed";
  context.font = `${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.fillText(`${caption} · ${marks.summary}`, 12 * unit, target.height - bar / 2, target.width - 24 * unit);
  return target;
}

/** File name of an exported view: image, mode, layer, head, level, query. */
function exportName(explanation, name, state) {
  const parts = [name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "_") || "image", state.mode, `layer${state.entry + 1}`];
  if (state.head !== null) parts.push(`head${state.head + 1}`);
  if (state.level !== null) parts.push(`level${state.level + 1}`);
  if (state.query !== null) parts.push(`query${state.query}`);
  return `${parts.join("-")}.png`;
}
