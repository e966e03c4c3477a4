/* Zoom and pan: the frame of a state, and gestures of mouse, wheel and fingers that change it. */

const MAX_ZOOM = 40;
const DRAG = 5; // pixels that a pointer moves before a click becomes a drag

/** The frame that shows the image in a canvas of `width` x `height` pixels, `unit` of them per CSS pixel. */
function frameOf(state, image, width, height, unit) {
  const fit = Math.min(width / image.width, height / image.height);
  const scale = fit * state.zoom;
  const center = state.center ?? { x: 0.5, y: 0.5 };
  return {
    scale,
    unit,
    width: image.width,
    height: image.height,
    x: offset(width, image.width * scale, center.x),
    y: offset(height, image.height * scale, center.y),
  };
}

/** Start of the image along one axis: centered while it fits, else without a gap at the borders. */
function offset(canvas, image, center) {
  if (image <= canvas) return (canvas - image) / 2;
  return Math.min(Math.max(canvas / 2 - center * image, canvas - image), 0);
}

/** The point of the image under a point of the canvas, in pixels of the image. */
function toImage(frame, x, y) {
  return { x: (x - frame.x) / frame.scale, y: (y - frame.y) / frame.scale };
}

/** Zoom and center such that `point` of the image comes to lie at (x, y) of the canvas. */
function zoomedTo(frame, canvas, fitScale, zoom, point, x, y) {
  const limited = Math.min(Math.max(zoom, 1), MAX_ZOOM);
  const scale = fitScale * limited;
  const center = {
    x: (point.x + (canvas.width / 2 - x) / scale) / frame.width,
    y: (point.y + (canvas.height / 2 - y) / scale) / frame.height,
  };
  if (limited === 1) return { zoom: 1, center: null };
  return { zoom: limited, center: { x: clampUnit(center.x), y: clampUnit(center.y) } };
}

function clampUnit(value) {
  return Math.min(Math.max(value, 0), 1);
}

/**
 * Connects gestures on the canvas with the page.
 * @param page {frame(), zoom(), setView(view), click(point), scrub(point) -> bool, hover(point or null)}; points in pixels of the image
 */
function connectGestures(canvas, page) {
  const pointers = new Map();
  let start = null; // of a gesture of one pointer
  let pinch = null; // of a gesture of two

  const position = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) * canvas.width) / box.width, y: ((event.clientY - box.top) * canvas.height) / box.height };
  };
  const zoomAt = (zoom, point, x, y) => {
    const frame = page.frame();
    page.setView(zoomedTo(frame, canvas, frame.scale / page.zoom(), zoom, point, x, y));
  };
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, distance: Math.hypot(a.x - b.x, a.y - b.y) };
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture?.(event.pointerId);
    pointers.set(event.pointerId, position(event));
    if (pointers.size === 2) {
      const { x, y, distance } = spread();
      pinch = { distance, zoom: page.zoom(), point: toImage(page.frame(), x, y) };
      start = null;
    } else if (pointers.size === 1) {
      const at = position(event);
      start = { ...at, point: toImage(page.frame(), at.x, at.y), moved: false, pan: event.shiftKey || event.button > 0 };
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = position(event);
    if (!pointers.has(event.pointerId)) {
      page.hover(toImage(page.frame(), at.x, at.y));
      return;
    }
    pointers.set(event.pointerId, at);
    if (pinch && pointers.size === 2) {
      const { x, y, distance } = spread();
      zoomAt((pinch.zoom * distance) / Math.max(pinch.distance, 1), pinch.point, x, y);
    } else if (start) {
      start.moved ||= Math.hypot(at.x - start.x, at.y - start.y) > DRAG * page.frame().unit;
      if (!start.moved) return;
      if (!start.pan && page.scrub(toImage(page.frame(), at.x, at.y))) return;
      zoomAt(page.zoom(), start.point, at.x, at.y);
    }
  });
  const end = (event) => {
    const at = position(event);
    if (start && !start.moved && event.type === "pointerup" && event.button === 0) page.click(toImage(page.frame(), at.x, at.y));
    pointers.delete(event.pointerId);
    start = null;
    if (pointers.size < 2) pinch = null;
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => page.hover(null));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault()); // the right button pans
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const at = position(event);
      const step = event.deltaMode === 1 ? 30 * event.deltaY : event.deltaY;
      const speed = event.ctrlKey ? 0.01 : 0.0016; // browsers report a pinch on a touchpad with ctrlKey
      zoomAt(page.zoom() * Math.exp(-step * speed), toImage(page.frame(), at.x, at.y), at.x, at.y);
    },
    { passive: false },
  );
}
