/* Marks on a canvas. A frame maps pixels of the image to pixels of the canvas: {scale, x, y, unit, ...}. */

const LEVEL_COLORS = ["#ffd166", "#06d6a0", "#4cc9f0", "#f15bb5", "#9b8cff", "#ff8a5b", "#c8e35a", "#ffffff"];

/** Color of a level or head. */
function seriesColor(index) {
  return LEVEL_COLORS[index % LEVEL_COLORS.length];
}

/** (red, green, blue) of a color map, from 0 to 1. */
function colorAt(table, value) {
  const i = 3 * Math.round(255 * Math.min(Math.max(value, 0), 1));
  return [table[i], table[i + 1], table[i + 2]];
}

/** Draws the image and all marks. */
function drawScene(context, frame, image, marks, state) {
  const { canvas } = context;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  const [x, y] = toCanvas(frame, 0, 0);
  const [width, height] = [frame.width * frame.scale, frame.height * frame.scale];
  context.imageSmoothingEnabled = frame.scale < 4 * frame.unit;
  context.imageSmoothingQuality = "high";
  if (image) context.drawImage(image, x, y, width, height);
  const dim = marks.heat ? 0.45 * state.opacity : marks.points || marks.arrows ? 0.35 * state.opacity : 0;
  context.fillStyle = `rgba(8, 10, 14, ${dim})`;
  if (dim) context.fillRect(x, y, width, height);
  if (marks.heat) drawHeat(context, frame, marks.heat, state);
  if (marks.arrows) drawArrows(context, frame, marks.arrows);
  if (state.dots) drawDots(context, frame, frame.dots, state.query);
  for (const box of marks.boxes) drawBox(context, frame, box);
  if (marks.path) drawPath(context, frame, marks.path);
  if (marks.points) drawPoints(context, frame, marks.points, state);
  if (marks.cell) strokeBox(context, frame, marks.cell.corners, "#ffffff", 1.5);
  if (marks.anchor) drawAnchor(context, frame, marks.anchor);
  drawLabels(context, frame, marks.boxes);
}

function toCanvas(frame, x, y) {
  return [frame.x + x * frame.scale, frame.y + y * frame.scale];
}

/** A map, interpolated between the centers of its cells or as cells; transparent where its values are small. */
function drawHeat(context, frame, heat, state) {
  const [x0, y0] = toCanvas(frame, heat.corners[0], heat.corners[1]);
  const [x1, y1] = toCanvas(frame, heat.corners[2], heat.corners[3]);
  const factor = state.smooth ? Math.max(1, Math.ceil(384 / Math.max(heat.width, heat.height))) : 1;
  const key = [factor, state.map, state.opacity].join();
  if (heat.key !== key) Object.assign(heat, { key, raster: heatRaster(heat, factor, frame.colorMaps[state.map], state.opacity) });
  context.imageSmoothingEnabled = state.smooth;
  context.drawImage(heat.raster, x0, y0, x1 - x0, y1 - y0);
}

/** The map as a canvas with `factor` x `factor` pixels per cell. */
function heatRaster(heat, factor, table, opacity) {
  const [width, height] = [heat.width * factor, heat.height * factor];
  const raster = document.createElement("canvas");
  Object.assign(raster, { width, height });
  const context = raster.getContext("2d");
  const pixels = context.createImageData(width, height);
  const inverse = heat.maximum > 0 ? 1 / heat.maximum : 0;
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const value = sample(heat, (row + 0.5) / factor - 0.5, (column + 0.5) / factor - 0.5) * inverse;
      const i = 4 * (row * width + column);
      const root = Math.sqrt(value);
      const shown = heat.fine ? root : value; // gradients are noisy: show small values too
      [pixels.data[i], pixels.data[i + 1], pixels.data[i + 2]] = colorAt(table, shown);
      pixels.data[i + 3] = 255 * opacity * Math.min(1, 1.25 * root);
    }
  }
  context.putImageData(pixels, 0, 0);
  return raster;
}

/** Bilinear interpolation between the centers of cells; exact at the centers. */
function sample(heat, row, column) {
  const y = Math.min(Math.max(row, 0), heat.height - 1);
  const x = Math.min(Math.max(column, 0), heat.width - 1);
  const [top, left] = [Math.floor(y), Math.floor(x)];
  const [bottom, right] = [Math.min(top + 1, heat.height - 1), Math.min(left + 1, heat.width - 1)];
  const [fy, fx] = [y - top, x - left];
  const at = (r, c) => heat.values[r * heat.width + c];
  return (1 - fy) * ((1 - fx) * at(top, left) + fx * at(top, right)) + fy * ((1 - fx) * at(bottom, left) + fx * at(bottom, right));
}

/** Sampling points: area and opacity by weight, color by level, head or weight; the heaviest on top. */
function drawPoints(context, frame, points, state) {
  const order = points.all.filter((point) => !point.hidden && point.weight > 0).sort((a, b) => a.weight - b.weight);
  const largest = 9 * frame.unit;
  for (const point of order) {
    const share = points.maximum > 0 ? point.weight / points.maximum : 0;
    const [x, y] = toCanvas(frame, point.x, point.y);
    const color = state.color === "weight" ? `rgb(${colorAt(frame.colorMaps.viridis, 0.15 + 0.85 * share)})` : seriesColor(point[state.color]);
    disc(context, x, y, Math.max(largest * Math.sqrt(share), 1.4 * frame.unit), color, 0.25 + 0.75 * Math.sqrt(share), frame.unit);
  }
}

function disc(context, x, y, radius, color, alpha, unit) {
  context.globalAlpha = alpha;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = color;
  context.fill();
  context.lineWidth = 0.9 * unit;
  context.strokeStyle = "rgba(0, 0, 0, 0.75)";
  context.stroke();
  context.globalAlpha = 1;
}

/** Lines from the cells of a regular grid to sampled points. */
function drawArrows(context, frame, arrows) {
  const radius = Math.min(Math.max(0.12 * arrows.cell * frame.scale, 1.2 * frame.unit), 4 * frame.unit);
  for (const each of arrows.all) {
    if (each.hidden) continue;
    const [x0, y0] = toCanvas(frame, each.from.x, each.from.y);
    const [x1, y1] = toCanvas(frame, each.x, each.y);
    context.strokeStyle = context.fillStyle = seriesColor(each.head);
    context.globalAlpha = 0.55;
    context.lineWidth = 1.1 * frame.unit;
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
    context.globalAlpha = 0.95;
    context.beginPath();
    context.arc(x1, y1, radius, 0, 2 * Math.PI);
    context.fill();
  }
  context.globalAlpha = 1;
}

/** Centers of the boxes of all queries, brighter for higher scores. */
function drawDots(context, frame, dots, selected) {
  for (const dot of dots) {
    const [x, y] = toCanvas(frame, dot.x, dot.y);
    const mine = dot.query === selected;
    disc(context, x, y, (mine ? 5 : 3) * frame.unit, mine ? "#ffffff" : "#ff5d8f", mine ? 1 : 0.35 + 0.65 * dot.score, frame.unit);
  }
}

/** One box by its role: detection, selected, faint, reference, region. */
function drawBox(context, frame, box) {
  const color = box.label === null ? "#ffffff" : frame.classColor(box.label);
  if (box.role === "faint") {
    context.globalAlpha = frame.faint;
    strokeBox(context, frame, box.corners, color, 1);
  } else if (box.role === "reference") {
    context.setLineDash([5 * frame.unit, 4 * frame.unit]);
    strokeBox(context, frame, box.corners, "#ffffff", 1.4);
  } else {
    strokeBox(context, frame, box.corners, color, box.role === "selected" ? 3 : box.role === "region" ? 1.6 : 2);
  }
  context.setLineDash([]);
  context.globalAlpha = 1;
}

/** A rectangle with a dark rim, visible on bright and dark images. */
function strokeBox(context, frame, [x0, y0, x1, y1], color, width) {
  const [left, top] = toCanvas(frame, x0, y0);
  const [right, bottom] = toCanvas(frame, x1, y1);
  for (const [style, extra] of [["rgba(0, 0, 0, 0.6)", 2], [color, 0]]) {
    context.strokeStyle = style;
    context.lineWidth = (width + extra) * frame.unit;
    context.strokeRect(left, top, right - left, bottom - top);
  }
}

/** Boxes after every layer, later ones stronger, and the path of their centers. */
function drawPath(context, frame, path) {
  path.corners.forEach((corners, layer) => {
    if (layer === path.current) return;
    const along = path.corners.length > 1 ? layer / (path.corners.length - 1) : 1;
    context.globalAlpha = 0.35 + 0.4 * along;
    strokeBox(context, frame, corners, `rgb(${colorAt(frame.colorMaps.viridis, 0.25 + 0.75 * along)})`, 1.2);
  });
  context.globalAlpha = 1;
  const centers = path.centers.map(({ x, y }) => toCanvas(frame, x, y));
  for (const [style, width] of [["rgba(0, 0, 0, 0.6)", 3.5], ["#ffffff", 1.5]]) {
    context.strokeStyle = style;
    context.lineWidth = width * frame.unit;
    context.beginPath();
    centers.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
  }
  const offset = path.centers.length - path.corners.length;
  centers.forEach(([x, y], i) => {
    const along = centers.length > 1 ? i / (centers.length - 1) : 1;
    const radius = (i - offset === path.current ? 5.5 : 3.5) * frame.unit;
    disc(context, x, y, radius, `rgb(${colorAt(frame.colorMaps.viridis, 0.25 + 0.75 * along)})`, 1, frame.unit);
  });
}

/** A cross at the reference point or the chosen pixel. */
function drawAnchor(context, frame, anchor) {
  const [x, y] = toCanvas(frame, anchor.x, anchor.y);
  for (const [style, width] of [["rgba(0, 0, 0, 0.8)", 4], ["#ffffff", 1.8]]) {
    context.strokeStyle = style;
    context.lineWidth = width * frame.unit;
    context.beginPath();
    for (const [dx, dy] of [[8, 0], [0, 8]]) {
      context.moveTo(x - dx * frame.unit, y - dy * frame.unit);
      context.lineTo(x + dx * frame.unit, y + dy * frame.unit);
    }
    context.stroke();
  }
}

/** Names of the detections and of the selected box, without overlap: the selected one first, then by score. */
function drawLabels(context, frame, boxes) {
  const size = 12.5 * frame.unit;
  const placed = [];
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const named = boxes.filter((box) => box.text && (box.role === "selected" || box.role === "detection"));
  named.sort((a, b) => Number(b.role === "selected") - Number(a.role === "selected"));
  for (const box of named) {
    const [left, top] = toCanvas(frame, box.corners[0], box.corners[1]);
    const width = context.measureText(box.text).width + size;
    const height = 1.5 * size;
    const x = Math.min(Math.max(left, 0), Math.max(context.canvas.width - width, 0));
    const y = top >= height ? top - height : Math.max(top, 0);
    const patch = { left: x, top: y, right: x + width, bottom: y + height };
    if (box.role !== "selected" && placed.some((other) => overlaps(patch, other))) continue;
    placed.push(patch);
    context.fillStyle = frame.classColor(box.label);
    context.fillRect(x, y, width, height);
    context.fillStyle = frame.textColor(box.label);
    context.fillText(box.text, x + size / 2, y + height / 2 + 0.5);
  }
}

function overlaps(a, b) {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}
