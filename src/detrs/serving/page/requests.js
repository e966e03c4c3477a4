/* Requests to the server. Every failure is an `Error` whose message is one sentence for the user. */

import { askForToken, authorization } from "./authorization.js";

const TRIES = 20;
const MEGABYTE = 1e6;

/**
 * Detections of an image, with all scores: {source, image_size, detections}.
 * A busy server (503, or 429 for one client) is asked again after the time that it states; `onBusy` is called before.
 */
export async function predict(file, limits, signal, onBusy) {
  checkSize(file, limits);
  const form = new FormData();
  form.append("files", file, file.name);
  const response = await post("predict?threshold=0", form, file, signal, onBusy);
  return (await response.json()).images[0];
}

/** The explorer of an image as HTML. `threshold`: smallest score of a detection. */
export async function explain(file, limits, threshold, signal) {
  checkSize(file, limits);
  const form = new FormData();
  form.append("file", file, file.name);
  const response = await post(`explain?threshold=${threshold}`, form, file, signal, () => {});
  return response.text();
}

/** A browser reports nothing but a lost connection when a server rejects a large body early. */
function checkSize(file, limits) {
  if (file.size > limits.bytes) {
    const sizes = [file.size, limits.bytes].map((bytes) => `${(bytes / MEGABYTE).toPrecision(3)} MB`);
    throw new Error(`${file.name} has ${sizes[0]}, but at most ${sizes[1]} are accepted.`);
  }
}

async function post(path, form, file, signal, onBusy) {
  for (let remaining = TRIES; ; remaining--) {
    let response;
    const headers = authorization();
    try {
      response = await fetch(path, { method: "POST", body: form, headers, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(await reasonOf(file));
    }
    if (response.ok) return response;
    if (response.status === 401) {
      const isOld = headers.Authorization !== authorization().Authorization; // another request got the token meanwhile
      if (isOld || (await askForToken())) continue;
    }
    const busy = response.status === 503 || response.status === 429;
    if (!busy || remaining <= 1) throw new Error(await sentenceOf(response));
    onBusy();
    await pause(1000 * Math.min(Number(response.headers.get("Retry-After")) || 1, 30), signal);
  }
}

async function reasonOf(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    return `${file.name} cannot be read: it was changed, moved or is a folder. Choose it again.`;
  }
  return "The server did not answer. Check that detrs serve is running, and try again.";
}

async function sentenceOf(response) {
  try {
    const body = await response.json();
    const sentence = body.error ?? body.detail;
    if (typeof sentence === "string") return sentence;
  } catch {
    // not JSON: an answer of something between this page and the server
  }
  return `The server answered with status ${response.status}.`;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("", "AbortError"));
    }, { once: true });
  });
}
