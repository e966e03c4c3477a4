/* The image with its boxes on a canvas. Boxes are [x1, y1, x2, y2] in pixels of the image. */

/** Where an image of {width, height} is on a canvas: pixels of the canvas are x + scale * pixels of the image. */
export function fitted(size, canvas, margin = 0) {
  const scale = Math.min((canvas.width - 2 * margin) / size.width, (canvas.height - 2 * margin) / size.height);
  return { scale, x: (canvas.width - scale * size.width) / 2, y: (canvas.height - scale * size.height) / 2 };
}

/**
 * Draws an image and its detections, the best last.
 * `style`: {colors: (name) => [color, text color], labels, active: a detection or null, unit: pixels per CSS pixel}.
 */
export function drawScene(context, frame, bitmap, size, detections, style) {
  const { canvas } = context;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#ffffff"; // transparent pixels: the server composites them on white, too
  context.fillRect(frame.x, frame.y, frame.scale * size.width, frame.scale * size.height);
  if (bitmap) context.drawImage(bitmap, frame.x, frame.y, frame.scale * size.width, frame.scale * size.height);
  const ordered = [...detections].reverse().filter((each) => each !== style.active);
  if (style.active && detections.includes(style.active)) ordered.push(style.active);
  for (const each of ordered) drawBox(context, frame, each, style);
  if (style.labels) for (const each of ordered) drawLabel(context, frame, each, style);
}

function corners(frame, box) {
  return [frame.x + frame.scale * box[0], frame.y + frame.scale * box[1], frame.x + frame.scale * box[2], frame.y + frame.scale * box[3]];
}

function drawBox(context, frame, detection, style) {
  const [x0, y0, x1, y1] = corners(frame, detection.box_xyxy);
  const [color] = style.colors(detection.name);
  const active = detection === style.active;
  context.globalAlpha = style.active && !active ? 0.45 : 1;
  for (const [stroke, width] of [["rgba(0, 0, 0, .55)", active ? 5 : 3.5], [color, active ? 3.2 : 2]]) {
    context.strokeStyle = stroke;
    context.lineWidth = width * style.unit;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.globalAlpha = 1;
}

function drawLabel(context, frame, detection, style) {
  const [x0, y0] = corners(frame, detection.box_xyxy);
  const [color, text] = style.colors(detection.name);
  const label = `${shortened(detection.name)} ${detection.score.toFixed(2)}`;
  context.font = `${12 * style.unit}px system-ui, sans-serif`;
  const [width, height] = [context.measureText(label).width + 8 * style.unit, 17 * style.unit];
  const x = Math.max(0, Math.min(x0 - style.unit, context.canvas.width - width));
  const y = y0 - height >= 0 ? y0 - height : y0;
  context.globalAlpha = style.active && detection !== style.active ? 0.45 : 0.95;
  context.fillStyle = color;
  context.fillRect(x, y, width, height);
  context.fillStyle = text;
  context.textBaseline = "middle";
  context.fillText(label, x + 4 * style.unit, y + height / 2 + style.unit / 2);
  context.globalAlpha = 1;
}

function shortened(name) {
  const letters = [...name];
  return letters.length > 30 ? `${letters.slice(0, 29).join("")}…` : name;
}

/** The smallest box that contains a pixel of the image, or null: small objects stand before large ones. */
export function detectionAt(detections, x, y) {
  const inside = detections.filter(({ box_xyxy: [x0, y0, x1, y1] }) => x0 <= x && x <= x1 && y0 <= y && y <= y1);
  const area = ({ box_xyxy: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);
  return inside.sort((one, other) => area(one) - area(other))[0] ?? null;
}
