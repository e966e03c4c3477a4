/* Keys of the page. */

import { byId, element } from "./elements.js";

const KEYS = [
  ["o", "choose images; Ctrl+V pastes one", (commands) => commands.choose()],
  ["ArrowLeft", "previous image", (commands) => commands.image(-1), "←"],
  ["ArrowRight", "next image", (commands) => commands.image(1), "→"],
  ["ArrowUp", "previous detection", (commands) => commands.detection(-1), "↑"],
  ["ArrowDown", "next detection", (commands) => commands.detection(1), "↓"],
  ["e", "explain the marked detection", (commands) => commands.explain()],
  ["+", "higher threshold", (commands) => commands.threshold(0.05)],
  ["-", "lower threshold", (commands) => commands.threshold(-0.05), "−"],
  ["l", "labels on or off", (commands) => commands.labels()],
  ["s", "save the shown detections of all images as JSON", (commands) => commands.saveJson()],
  ["p", "save the image with its boxes as PNG", (commands) => commands.savePng()],
  ["Delete", "remove the image", (commands) => commands.remove()],
  ["d", "light or dark", (commands) => commands.theme()],
  ["?", "this help", () => byId("keys").showModal()],
];

export function connectKeys(commands) {
  byId("keys").querySelector("dl").append(...KEYS.flatMap(([key, text, , label]) => [element("dt", {}, label ?? key), element("dd", {}, text)]));
  byId("keys-close").addEventListener("click", () => byId("keys").close());
  byId("help").addEventListener("click", () => byId("keys").showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.matches?.("input") && event.key.startsWith("Arrow")) return; // the slider's own keys
    const known = KEYS.find(([key]) => key === event.key);
    if (!known) return;
    event.preventDefault();
    known[2](commands);
  });
}
