/* Keys, and what lies under the pointer. */

/** Carries out the command of a key; keys in text fields and lists keep their meaning. */
function pressKey(event, page) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const { tagName } = event.target;
  if (tagName === "INPUT" || tagName === "SELECT") {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const command = commandOf(event, page);
  if (!command) return;
  event.preventDefault();
  command();
}

function commandOf(event, page) {
  const state = page.state();
  const mode = page.modeOf();
  const entry = mode.entries[state.entry] ?? {};
  if (event.shiftKey && event.key.startsWith("Arrow")) return mode.selects === "pixel" ? () => movePixel(event.key, page, entry) : null;
  const cycle = (name, count, step) => () => page.update({ [name]: cycled(state[name], count, step) });
  switch (event.key) {
    case "ArrowDown": return () => neighbour(page, 1);
    case "ArrowUp": return () => neighbour(page, -1);
    case "ArrowRight": return () => page.update({ entry: Math.min(state.entry + 1, mode.entries.length - 1) });
    case "ArrowLeft": return () => page.update({ entry: Math.max(state.entry - 1, 0) });
    case "]": return () => changeMode(page, 1);
    case "[": return () => changeMode(page, -1);
    case "h": return cycle("head", entry.numHeads ?? 0, 1);
    case "H": return cycle("head", entry.numHeads ?? 0, -1);
    case "l": return cycle("level", entry.numLevels ?? 0, 1);
    case "L": return cycle("level", entry.numLevels ?? 0, -1);
    case "c": return () => page.update({ color: { level: "head", head: "weight", weight: "level" }[state.color] });
    case "i": return () => page.update({ smooth: !state.smooth });
    case "q": return () => page.update({ dots: !state.dots });
    case "+": case "=": return () => page.zoomBy(1.4);
    case "-": return () => page.zoomBy(1 / 1.4);
    case "0": return () => page.update({ zoom: 1, center: null });
    case "d": return page.toggleTheme;
    case "p": return page.saveImage;
    case "?": return () => byId("keys").showModal();
    case "Escape": return () => page.update({ detection: null, query: null, pixel: null });
    case "/": return () => {
      page.update({ tab: "queries" });
      byId("search").focus();
    };
    default: return null;
  }
}

/** all, 1, 2, ..., count, all, ... */
function cycled(current, count, step) {
  const position = current === null ? 0 : current + 1;
  const next = (position + step + count + 1) % (count + 1);
  return next === 0 ? null : next - 1;
}

function changeMode(page, step) {
  const { modes } = page.explanation;
  const position = modes.findIndex((each) => each.key === page.state().mode);
  const next = modes[(position + step + modes.length) % modes.length];
  if (next) page.update(switchMode(page.explanation, page.state(), next.key));
}

/** The next item of the list that is open. */
function neighbour(page, step) {
  const rows = [...byId("list").querySelectorAll(".row")];
  if (!rows.length) return;
  const position = rows.findIndex((row) => row.getAttribute("aria-current") === "true");
  const next = position < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(Math.max(position + step, 0), rows.length - 1);
  rows[next].click();
}

function movePixel(key, page, entry) {
  const { width, height } = entry.view.grid;
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  const pixel = page.state().pixel ?? { x: 0.5, y: 0.5 };
  page.update({ pixel: { x: clampUnit(pixel.x + dx / width), y: clampUnit(pixel.y + dy / height) } });
}

/** Detections whose box contains the point, the smallest first. */
function detectionsAt(explanation, { x, y }) {
  const area = (index) => {
    const [x0, y0, x1, y1] = explanation.detections[index].box_xyxy;
    return (x1 - x0) * (y1 - y0);
  };
  const hits = explanation.detections.flatMap(({ box_xyxy: [x0, y0, x1, y1] }, index) => (x >= x0 && x <= x1 && y >= y0 && y <= y1 ? [index] : []));
  return hits.sort((a, b) => area(a) - area(b));
}

/** The point of `points` nearest to `point` within `radius`, or null. */
function nearest(points, point, radius) {
  let best = null;
  let smallest = radius;
  for (const each of points) {
    const distance = Math.hypot(each.x - point.x, each.y - point.y);
    if (distance <= smallest) [best, smallest] = [each, distance];
  }
  return best;
}

/** Text beside the pointer: a sampling point, the value of a map, or a detection. */
function tipText(explanation, marks, mode, point, radius) {
  if (marks.points) {
    const found = nearest(marks.points.all.filter((each) => !each.hidden), point, radius);
    if (found) return `${percent(found.weight)}, head ${found.head + 1}, level ${found.level + 1}`;
  }
  if (marks.heat) {
    const { corners: [x0, y0, x1, y1], width, height, values } = marks.heat;
    const [column, row] = [Math.floor(((point.x - x0) / (x1 - x0)) * width), Math.floor(((point.y - y0) / (y1 - y0)) * height)];
    if (column >= 0 && column < width && row >= 0 && row < height) return short(values[row * width + column]);
  }
  const [hit] = mode.selects === "pixel" ? [] : detectionsAt(explanation, point);
  return hit === undefined ? "" : `${explanation.detections[hit].name} ${explanation.detections[hit].score.toFixed(2)}`;
}

/** Centers of the final boxes of all queries. */
function allDots(explanation) {
  const dots = Array.from({ length: explanation.numQueries }, (_, query) => {
    const [x0, y0, x1, y1] = explanation.box(explanation.last, query);
    return { query, x: (x0 + x1) / 2, y: (y0 + y1) / 2, score: explanation.score(explanation.last, query) };
  });
  return dots.sort((a, b) => a.score - b.score);
}

/** Selector of a control, to give the focus back after it is built anew. */
function focusKey(node) {
  const name = node?.closest?.("[data-choice]")?.dataset.choice;
  if (!name) return null;
  const own = node.dataset.value === undefined ? node.tagName.toLowerCase() : `[data-value="${node.dataset.value}"]`;
  return `[data-choice="${name}"] ${own}`;
}

/** Scrolls a list, and only it, so that a row is visible. */
function reveal(list, row) {
  const [outer, inner] = [list.getBoundingClientRect(), row.getBoundingClientRect()];
  if (inner.top < outer.top) list.scrollTop -= outer.top - inner.top + 8;
  if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom + 8;
}
