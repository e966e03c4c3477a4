/* The page: keeps the state, and brings every change of it to the image, the lists and the table. */

import { detectionAt, drawScene, fitted } from "./drawing.js";
import { byId, counted } from "./elements.js";
import { connectExplanation } from "./explanation.js";
import { connectIntake } from "./intake.js";
import { connectKeys } from "./keys.js";
import { drawThumbnail, markRow, renderClasses, renderImages, renderTable } from "./lists.js";
import { saveJson, savePng } from "./output.js";
import { predict } from "./requests.js";

const PARALLEL = 3; // requests at a time: the server forms batches of them

const settings = JSON.parse(byId("settings").textContent);
const colorOf = new Map(settings.classes.map((each) => [each.name, each.colors]));
settings.colors = (name) => colorOf.get(name) ?? ["#cccccc", "#000000"];

/** An image: {file, status, detections, imageSize, error, abort}. Detections are all of them, best first. */
const state = { images: [], selected: null, threshold: settings.threshold, hidden: new Set(), labels: true, active: null };
const canvas = byId("canvas");
const context = canvas.getContext("2d");
const openExplanation = connectExplanation(settings);
let bitmap = { image: null, pixels: null }; // of the selected image only: decoded images are large
let scheduled = 0;

const unit = () => Math.min(window.devicePixelRatio || 1, 3);
const isShown = (each) => each.score >= state.threshold && !state.hidden.has(each.name);
const shown = (image) => (image?.detections ?? []).filter(isShown);
const threshold = () => state.threshold.toFixed(3).replace(/0$/, ""); // that of a checkpoint has more than two digits
const style = () => ({ colors: settings.colors, labels: state.labels, active: state.active, unit: unit() });

function add(files) {
  const images = files.map((file) => ({ file, status: "queued", detections: null, imageSize: null, error: null, abort: new AbortController() }));
  if (!images.length) return;
  state.images.push(...images);
  select(images[0]);
  for (const image of images) drawThumbnail(image);
  work();
}

/** Starts requests for queued images. */
function work() {
  const running = state.images.filter((image) => image.status === "running" || image.status === "busy").length;
  for (const image of state.images.filter((each) => each.status === "queued").slice(0, PARALLEL - running)) detect(image);
}

async function detect(image) {
  const show = (changes) => {
    Object.assign(image, changes);
    if (state.images.includes(image)) render();
  };
  show({ status: "running" });
  try {
    const found = await predict(image.file, settings.limits, image.abort.signal, () => show({ status: "busy" }));
    show({ status: "done", detections: found.detections, imageSize: found.image_size });
  } catch (error) {
    if (error.name === "AbortError") return;
    show({ status: "failed", error: error.message });
  }
  work();
}

function select(image) {
  state.selected = image;
  state.active = null;
  if (bitmap.image !== image) decode(image);
  render();
  image?.entry.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** Decodes the selected image for the canvas; browsers apply the EXIF orientation, as the server does. */
async function decode(image) {
  bitmap.pixels?.close();
  bitmap = { image, pixels: null };
  if (!image) return;
  try {
    const pixels = await createImageBitmap(image.file);
    if (bitmap.image === image) bitmap.pixels = pixels;
    else pixels.close();
  } catch {
    // the server's answer states why, or the boxes are drawn without the image
  }
  draw();
}

function remove(image) {
  image.abort.abort();
  const index = state.images.indexOf(image);
  state.images.splice(index, 1);
  if (state.selected === image) select(state.images[Math.min(index, state.images.length - 1)] ?? null);
  else render();
  work();
}

function render() {
  const image = state.selected;
  const detections = shown(image);
  if (!detections.includes(state.active)) state.active = null;
  byId("empty").hidden = image !== null;
  canvas.hidden = image === null || image.status === "failed";
  byId("failure").hidden = image?.status !== "failed";
  byId("failure").textContent = image?.error ?? "";
  byId("threshold-value").textContent = threshold();
  byId("labels").setAttribute("aria-pressed", String(state.labels));
  byId("save-json").disabled = !state.images.some((each) => each.status === "done");
  byId("save-png").disabled = image?.status !== "done";
  byId("images").setAttribute("aria-busy", String(state.images.some((each) => !["done", "failed"].includes(each.status))));
  renderImages(state.images, image, shown, select);
  renderClasses(settings, state.images, image, state, toggleClass);
  renderTable(settings, image, detections, state.active, { hover: activate, open });
  byId("summary").textContent = summary(image, detections);
  canvas.setAttribute("aria-label", image ? `Image ${image.file.name}` : "");
  draw();
}

function summary(image, detections) {
  if (!image || image.status === "failed") return "";
  if (image.status === "queued") return `${image.file.name}: queued`;
  if (image.status === "running") return `${image.file.name}: detecting …`;
  if (image.status === "busy") return `${image.file.name}: the server is busy, trying again …`;
  const [height, width] = image.imageSize;
  return `${image.file.name}, ${width} × ${height}: ${counted(detections.length, "detection")} with score ${threshold()} or more`;
}

/** The size of the selected image: as the server states it, or as decoded. */
function sizeOf(image) {
  if (image.imageSize) return { height: image.imageSize[0], width: image.imageSize[1] };
  return bitmap.pixels && { height: bitmap.pixels.height, width: bitmap.pixels.width };
}

function frame() {
  const size = state.selected && sizeOf(state.selected);
  return size ? { ...fitted(size, canvas, 8 * unit()), size } : null;
}

function draw() {
  scheduled ||= requestAnimationFrame(() => {
    scheduled = 0;
    const now = frame();
    if (now) drawScene(context, now, bitmap.pixels, now.size, shown(state.selected), style());
    else context.clearRect(0, 0, canvas.width, canvas.height);
  });
}

function activate(detection, scroll = false) {
  if (state.active === detection) return;
  state.active = detection;
  markRow(shown(state.selected), detection, scroll);
  draw();
}

function open(detection) {
  activate(detection);
  openExplanation(state.selected, detection, state.threshold);
}

function under(event) {
  const now = frame();
  if (!now) return null;
  const box = canvas.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) * unit(), (event.clientY - box.top) * unit()];
  return detectionAt(shown(state.selected), (x - now.x) / now.scale, (y - now.y) / now.scale);
}

function step(list, current, offset) {
  const index = list.indexOf(current);
  return list[index < 0 ? (offset > 0 ? 0 : list.length - 1) : Math.max(0, Math.min(list.length - 1, index + offset))] ?? null;
}

function toggleClass(name) {
  if (!state.hidden.delete(name)) state.hidden.add(name);
  render();
}

function setThreshold(value) {
  state.threshold = Math.max(0, Math.min(1, Math.round(100 * value) / 100));
  byId("threshold").value = String(state.threshold);
  render();
}

const commands = {
  choose: () => byId("choose").click(),
  image: (offset) => state.images.length && select(step(state.images, state.selected, offset)),
  detection: (offset) => activate(step(shown(state.selected), state.active, offset), true),
  explain: () => state.active && open(state.active),
  threshold: (offset) => setThreshold(state.threshold + offset),
  labels: () => {
    state.labels = !state.labels;
    render();
  },
  remove: () => state.selected && remove(state.selected),
  saveJson: () => byId("save-json").disabled || saveJson(settings, state, shown),
  savePng: () => byId("save-png").disabled || savePng(state.selected, bitmap.pixels, shown(state.selected), style()),
  theme: () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  },
};

byId("threshold").value = String(settings.threshold);
byId("threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value)));
byId("labels").addEventListener("click", commands.labels);
byId("save-json").addEventListener("click", commands.saveJson);
byId("save-png").addEventListener("click", commands.savePng);
byId("theme").addEventListener("click", commands.theme);
byId("clear").addEventListener("click", () => {
  for (const image of state.images) image.abort.abort();
  state.images = [];
  state.hidden.clear();
  select(null);
  byId("choose").focus();
});
canvas.addEventListener("mousemove", (event) => {
  const detection = under(event);
  canvas.classList.toggle("over", detection !== null);
  activate(detection, true);
});
canvas.addEventListener("mouseleave", () => activate(null));
canvas.addEventListener("click", (event) => {
  const detection = under(event);
  if (detection) open(detection);
});
new ResizeObserver(() => {
  const box = byId("stage").getBoundingClientRect();
  canvas.width = Math.max(Math.round(box.width * unit()), 1);
  canvas.height = Math.max(Math.round(box.height * unit()), 1);
  draw();
}).observe(byId("stage"));
connectKeys(commands);
connectIntake(add);
render();
window.detrs = { state, shown, frame, settings, get bitmap() { return bitmap.pixels; } };
document.documentElement.dataset.ready = "true";
