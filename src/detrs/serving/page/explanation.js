/* The explorer of an image in a dialog: what the model computed for a detection. */

import { byId, stem } from "./elements.js";
import { explain } from "./requests.js";

const MARGIN = 0.9; // of the score: explanations are in float32, where the detection may have a lower one

/** Returns `open(image, detection, threshold)`. */
export function connectExplanation(settings) {
  const dialog = byId("explanation");
  let opened = null; // {abort, url} of the current request

  function close() {
    opened?.abort.abort();
    if (opened?.url) URL.revokeObjectURL(opened.url);
    opened = null;
    dialog.querySelector("iframe")?.remove();
  }

  async function open(image, detection, threshold) {
    close();
    const own = (opened = { abort: new AbortController(), url: null });
    byId("explanation-title").textContent = `${detection.name} ${detection.score.toFixed(3)} in ${image.file.name}`;
    byId("explanation-save").hidden = true;
    show(settings.explain ?? "Explaining: one forward pass with every layer recorded …");
    if (!dialog.open) dialog.showModal();
    if (settings.explain !== null) return;
    try {
      const html = await explain(image.file, settings.limits, Math.min(threshold, MARGIN * detection.score), own.abort.signal);
      own.url = URL.createObjectURL(new Blob([html], { type: "text/html" }));
      showPage(own.url, image, detection);
    } catch (error) {
      if (error.name !== "AbortError" && opened === own) show(error.message);
    }
  }

  function show(text) {
    byId("explanation-status").textContent = text;
    byId("explanation-status").hidden = false;
  }

  /** The explorer in a frame of its own origin: it can neither read this page nor send requests. */
  function showPage(url, image, detection) {
    const wanted = new URLSearchParams({ name: detection.name, box: detection.box_xyxy.join(",") }); // other precisions have other indices
    const frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts allow-forms allow-downloads");
    frame.title = `Explanation of ${image.file.name}`;
    frame.src = `${url}#${wanted}`;
    byId("explanation-status").hidden = true;
    frame.addEventListener("load", () => frame.focus()); // the keys of the explorer
    dialog.append(frame);
    Object.assign(byId("explanation-save"), { href: url, download: `${stem(image.file.name)}.html`, hidden: false });
  }

  byId("explanation-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", close);
  return open;
}
