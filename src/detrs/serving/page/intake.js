/* Images from outside: dropped, pasted, chosen, or taken with the camera. */

import { byId } from "./elements.js";

/** Calls `add(files)` for every group of files that the user gives. */
export function connectIntake(add) {
  const choose = () => byId("files").click();
  byId("choose").addEventListener("click", choose);
  byId("empty").addEventListener("click", choose);
  byId("files").addEventListener("change", () => {
    add([...byId("files").files]);
    byId("files").value = ""; // the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) event.preventDefault();
    add(files);
  });
  connectDrop(add);
  connectCamera(add);
}

function connectDrop(add) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const show = (shown) => (byId("drop").hidden = !shown);
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault(); // otherwise the browser would open the file
      event.dataTransfer.dropEffect = "copy";
      show(true);
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && show(false));
  document.addEventListener("drop", async (event) => {
    show(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    // items are valid during the event only, so the entries are taken before the first await
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    const entries = items.map((item) => [item.webkitGetAsEntry?.() ?? null, item.getAsFile()]);
    const groups = await Promise.all(entries.map(([entry, file]) => (entry?.isDirectory ? filesIn(entry) : [file])));
    add(groups.flat().filter((file) => file !== null));
  });
}

/** Files of the accepted types in a dropped folder and its subfolders, sorted by path, without hidden files. */
async function filesIn(folder) {
  const reader = folder.createReader();
  const entries = [];
  for (;;) {
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) break; // a reader returns at most 100 entries at a time
    entries.push(...some);
  }
  entries.sort((one, other) => one.name.localeCompare(other.name));
  const accepted = byId("files").accept.split(",");
  const visible = entries.filter((entry) => !entry.name.startsWith("."));
  const groups = await Promise.all(visible.map((entry) => (entry.isDirectory ? filesIn(entry) : fileOf(entry))));
  return groups.flat().filter((file) => accepted.includes(file?.type));
}

function fileOf(entry) {
  return new Promise((resolve) => entry.file(resolve, () => resolve(null)));
}

/** The camera needs a secure context: localhost or HTTPS. The button is hidden elsewhere. */
function connectCamera(add) {
  if (!navigator.mediaDevices?.getUserMedia) return;
  const [dialog, video, take] = [byId("shot"), byId("video"), byId("shot-take")];
  let number = 0;
  byId("camera").hidden = false;
  byId("camera").addEventListener("click", async () => {
    dialog.showModal();
    take.disabled = true;
    byId("shot-status").textContent = "Waiting for the permission to use the camera.";
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } }, audio: false });
      if (!dialog.open) return stop(stream);
      video.srcObject = stream;
      await video.play();
      byId("shot-status").textContent = "";
      take.disabled = false;
      take.focus();
    } catch (error) {
      const denied = error.name === "NotAllowedError";
      byId("shot-status").textContent = denied ? "The browser does not permit the camera for this page." : "No camera can be used.";
    }
  });
  take.addEventListener("click", async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
    add([new File([blob], `camera-${++number}.jpg`, { type: blob.type })]);
    dialog.close();
  });
  byId("shot-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    stop(video.srcObject);
    video.srcObject = null;
  });
}

function stop(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}
