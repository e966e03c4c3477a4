/* Files for the user: JSON of all images, PNG of one. */

import { drawScene, fitted } from "./drawing.js";
import { save, stem } from "./elements.js";

/** The shown detections of all images, as `detrs predict` writes them, and the images that were not accepted. */
export function saveJson(settings, state, shown) {
  const done = state.images.filter((image) => image.status === "done");
  const failed = state.images.filter((image) => image.status === "failed");
  const values = {
    checkpoint: settings.checkpoint,
    threshold: state.threshold,
    hidden_classes: [...state.hidden],
    images: done.map((image) => ({ source: image.file.name, image_size: image.imageSize, detections: shown(image) })),
    skipped: failed.map((image) => ({ source: image.file.name, error: image.error })),
  };
  save(new Blob([JSON.stringify(values, null, 2)], { type: "application/json" }), "detections.json");
}

/** The image in its own size with the shown boxes. */
export async function savePng(image, bitmap, detections, style) {
  const [height, width] = image.imageSize;
  const canvas = new OffscreenCanvas(width, height);
  const unit = Math.max(1, Math.min(width, height) / 700);
  drawScene(canvas.getContext("2d"), fitted({ width, height }, canvas), bitmap, { width, height }, detections, { ...style, active: null, unit });
  save(await canvas.convertToBlob({ type: "image/png" }), `${stem(image.file.name)}-detections.png`);
}
