/* The page: keeps the state, and brings every change of it to the image, the controls, the panel and the address. */

const KEYS = {
  "↑ ↓": "previous, next detection or query",
  "← →": "previous, next layer",
  "[ ]": "previous, next view",
  "h, Shift h": "next, previous head",
  "l, Shift l": "next, previous level",
  "c": "color by level, head, weight",
  "i": "bilinear or nearest",
  "q": "boxes of all queries as dots",
  "Shift + arrows": "move the pixel by one token",
  "+ − 0": "zoom in, out, fit",
  "/": "search a query",
  "Esc": "select nothing",
  "p": "save the view as PNG",
  "d": "light or dark",
  "?": "this help",
  "Click": "select a detection, or a pixel in views of the encoder; again for the box below",
  "Drag": "pan; in views of the encoder, move the pixel (Shift or right button: pan)",
  "Wheel, pinch": "zoom",
};

function startExplorer() {
  const explanation = new Explanation(JSON.parse(byId("payload").textContent));
  const settings = JSON.parse(byId("settings").textContent);
  const colorMaps = Object.fromEntries(Object.entries(settings.color_maps).map(([name, text]) => [name, bytesOf(text)]));
  const colors = {
    css: (label) => settings.colors[label]?.[0] ?? "#cccccc",
    text: (label) => settings.colors[label]?.[1] ?? "#000000",
  };
  const canvas = byId("canvas");
  const context = canvas.getContext("2d");
  const image = new Image();
  let state = fromHash(location.hash, explanation);
  let marks = marksOf(explanation, state);
  let shown = marks; // differs from `marks` during an animation
  let dots = null;
  let listed = null; // what the list was built for
  let hashTimer = 0;

  const unit = () => Math.min(window.devicePixelRatio || 1, 3);
  const frame = () => decorated(frameOf(state, explanation, canvas.width, canvas.height, unit()));

  /** A frame with what the drawing needs besides the geometry. */
  function decorated(plain) {
    if (state.dots) dots ??= allDots(explanation);
    const faint = explanation.detections.length > 15 ? 0.2 : 0.45; // many boxes would hide what is between them
    return { ...plain, colorMaps, faint, dots: dots ?? [], classColor: colors.css, textColor: colors.text };
  }

  /** Changes fields of the state, and shows the result. */
  function update(changes) {
    const before = state;
    state = valid({ ...state, ...changes }, explanation);
    const geometry = Object.keys(changes).every((name) => name === "zoom" || name === "center");
    if (!geometry) {
      const previous = shown;
      marks = marksOf(explanation, state);
      renderPage(before);
      const steps = before.mode === state.mode && before.entry !== state.entry && before.query === state.query;
      if (steps) animate(previous);
      else showMarks(marks);
    } else {
      draw();
    }
    clearTimeout(hashTimer);
    hashTimer = setTimeout(() => history.replaceState(null, "", `#${toHash(state)}`), 120);
  }

  function showMarks(next) {
    shown = next;
    draw();
  }

  let scheduled = 0;
  function draw() {
    scheduled ||= requestAnimationFrame(() => {
      scheduled = 0;
      drawScene(context, frame(), image.complete ? image : null, shown, state);
    });
  }

  /** Moves points and boxes from one layer to the next. */
  let animation = 0;
  function animate(previous) {
    cancelAnimationFrame(animation);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return showMarks(marks);
    const [from, to, start] = [previous, marks, performance.now()];
    const step = (now) => {
      const t = Math.min((now - start) / 260, 1);
      showMarks(t < 1 ? between(from, to, t * t * (3 - 2 * t)) : to);
      if (t < 1 && marks === to) animation = requestAnimationFrame(step);
    };
    animation = requestAnimationFrame(step);
  }

  function renderPage(before) {
    if (!before || CONTROLLED.some((name) => before[name] !== state[name])) {
      const focused = focusKey(document.activeElement);
      byId("controls").replaceChildren(...controls(explanation, state, update));
      if (focused) document.querySelector(focused)?.focus({ preventScroll: true });
    }
    renderPanel(before);
    renderLegend();
    byId("summary").textContent = marks.missing || marks.summary;
    canvas.setAttribute("aria-label", `Image ${settings.name}`);
    byId("dots").setAttribute("aria-pressed", String(state.dots));
    if (state.theme) document.documentElement.dataset.theme = state.theme;
    else delete document.documentElement.dataset.theme;
    canvas.classList.toggle("pixel", modeOf().selects === "pixel");
  }

  const actions = {
    layer: (layer) => {
      const mode = modeOf();
      const entry = mode.selects === "query" ? mode.entries.findIndex((each) => each.layer === layer) : -1;
      update(entry >= 0 ? { entry } : { mode: "boxes", entry: layer });
    },
    query: (query) => update(selection(explanation.detectionsOf(query)[0] ?? null, query)),
    detection: (index) => update(selection(index, explanation.detections[index].query)),
  };

  /** Fields that select a detection or query; views of the encoder follow to the center of its box. */
  function selection(detection, query) {
    const changes = { detection, query };
    if (modeOf().selects === "pixel") {
      const [x0, y0, x1, y1] = detection === null ? explanation.box(explanation.last, query) : explanation.detections[detection].box_xyxy;
      changes.pixel = { x: clampUnit((x0 + x1) / 2 / explanation.width), y: clampUnit((y0 + y1) / 2 / explanation.height) };
    }
    return changes;
  }

  function modeOf() {
    return explanation.modes.find((each) => each.key === state.mode) ?? { entries: [{}], selects: "nothing" };
  }

  function renderPanel(before) {
    for (const tab of ["detections", "queries"]) {
      byId(`tab-${tab}`).setAttribute("aria-selected", String(state.tab === tab));
    }
    byId("search").hidden = state.tab !== "queries";
    if (document.activeElement !== byId("search")) byId("search").value = state.search;
    const wanted = `${state.tab} ${state.tab === "queries" ? state.search : ""}`;
    if (listed !== wanted) {
      listed = wanted;
      const queries = state.tab === "queries" ? matchingQueries(explanation, state.search) : [];
      const list = state.tab === "detections" ? detectionList(explanation, colors, actions.detection) : queryList(explanation, queries, colors, actions.query);
      byId("list").replaceChildren(state.tab === "queries" && !queries.length ? element("p", { class: "empty" }, "No query matches.") : list);
    }
    for (const row of byId("list").querySelectorAll(".row")) {
      const current = state.tab === "detections" ? Number(row.dataset.detection) === state.detection : Number(row.dataset.query) === state.query;
      if (current === (row.getAttribute("aria-current") === "true")) continue;
      if (current) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
      if (current) reveal(byId("list"), row);
    }
    const same = before && ["query", "detection", "mode", "entry"].every((name) => before[name] === state[name]);
    if (!same) byId("detail").replaceChildren(queryDetail(explanation, state, colors, actions));
  }

  function renderLegend() {
    const parts = [];
    const heat = marks.heat;
    if (heat) parts.push(scaleBar(state.map, heat.maximum, heat.fine ? "square root" : ""));
    if (marks.points && state.color === "weight") parts.push(scaleBar("viridis", marks.points.maximum, ""));
    if (marks.points) parts.push(element("span", {}, "size and opacity: weight"));
    if (marks.anchor) parts.push(element("span", {}, marks.cell ? "cross: chosen token" : "cross: reference point"));
    if (marks.boxes.some((box) => box.role === "reference")) parts.push(element("span", {}, "dashed: reference box"));
    if (marks.path) parts.push(element("span", {}, "thin boxes: other layers, dark to bright"));
    if (marks.arrows) parts.push(element("span", {}, "lines: from a regular grid to the sampled points"));
    byId("legend").replaceChildren(...parts);
  }

  /** The color map with the values at its ends. */
  function scaleBar(map, maximum, note) {
    const strip = element("canvas", { width: 128, height: 1, class: "strip", "aria-hidden": "true" });
    const pixels = strip.getContext("2d");
    for (let i = 0; i < 128; i++) {
      pixels.fillStyle = `rgb(${colorAt(colorMaps[map], i / 127)})`;
      pixels.fillRect(i, 0, 1, 1);
    }
    return element("span", { class: "scale" }, "0", strip, `${short(maximum)}${note ? ` (${note})` : ""}`);
  }

  function click(point) {
    canvas.focus({ preventScroll: true });
    if (modeOf().selects === "pixel") return scrub(point);
    const dot = state.dots ? nearest(dots, point, (10 * unit()) / frame().scale) : null;
    if (dot) return actions.query(dot.query);
    const hits = detectionsAt(explanation, point);
    if (!hits.length) return update({ detection: null, query: null });
    const position = hits.indexOf(state.detection);
    actions.detection(hits[(position + 1) % hits.length]);
  }

  /** Moves the pixel in views of the encoder; false in others. */
  function scrub(point) {
    if (modeOf().selects !== "pixel") return false;
    update({ pixel: { x: clampUnit(point.x / explanation.width), y: clampUnit(point.y / explanation.height) } });
    return true;
  }

  function hover(point) {
    const text = point ? tipText(explanation, marks, modeOf(), point, (9 * unit()) / frame().scale) : "";
    const tip = byId("tip");
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const { scale, x, y } = frame();
    tip.style.left = `${(x + point.x * scale) / unit()}px`;
    tip.style.top = `${(y + point.y * scale) / unit()}px`;
  }

  function resize() {
    const box = byId("stage").getBoundingClientRect();
    canvas.width = Math.max(Math.round(box.width * unit()), 1);
    canvas.height = Math.max(Math.round(box.height * unit()), 1);
    drawScene(context, frame(), image.complete ? image : null, shown, state);
  }

  function zoomBy(factor) {
    const plain = frame();
    const middle = toImage(plain, canvas.width / 2, canvas.height / 2);
    update(zoomedTo(plain, canvas, plain.scale / state.zoom, state.zoom * factor, middle, canvas.width / 2, canvas.height / 2));
  }

  function toggleTheme() {
    const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    update({ theme: dark ? "light" : "dark" });
  }

  function saveImage() {
    const target = exportCanvas(explanation, decorated, image, marks, state, settings.caption);
    target.toBlob((blob) => {
      const link = element("a", { href: URL.createObjectURL(blob), download: exportName(explanation, settings.name, state) });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }

  const commands = { update, actions, modeOf, zoomBy, toggleTheme, saveImage, state: () => state, explanation };
  byId("tab-detections").addEventListener("click", () => update({ tab: "detections" }));
  byId("tab-queries").addEventListener("click", () => update({ tab: "queries" }));
  byId("search").addEventListener("input", (event) => update({ search: event.target.value }));
  byId("dots").addEventListener("click", () => update({ dots: !state.dots }));
  byId("fit").addEventListener("click", () => update({ zoom: 1, center: null }));
  byId("export").addEventListener("click", saveImage);
  byId("theme").addEventListener("click", toggleTheme);
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("keys").querySelector("dl").append(...Object.entries(KEYS).flatMap(([key, text]) => [element("dt", {}, key), element("dd", {}, text)]));
  document.addEventListener("keydown", (event) => pressKey(event, commands));
  window.addEventListener("hashchange", () => update(fromHash(location.hash, explanation)));
  connectGestures(canvas, { frame, zoom: () => state.zoom, setView: update, click, scrub, hover });
  byId("count-detections").textContent = explanation.detections.length;
  byId("count-queries").textContent = explanation.numQueries;

  renderPage(null);
  new ResizeObserver(resize).observe(byId("stage"));
  image.addEventListener("load", () => {
    resize();
    document.documentElement.dataset.ready = performance.now().toFixed(0); // milliseconds until the first drawing
  });
  image.src = explanation.json.image.data;
  return { get state() { return state; }, get marks() { return marks; }, get frame() { return frame(); }, update, explanation };
}

window.explorer = startExplorer();
