/* The side panel: lists of detections and queries, and what one query did over the layers. */

/** The list of detections. */
function detectionList(explanation, colors, onSelect) {
  if (!explanation.detections.length) {
    const threshold = explanation.json.threshold;
    return element("p", { class: "empty" }, `No detection reaches the threshold ${threshold}. The queries are listed in the other tab.`);
  }
  const rows = explanation.detections.map((each, index) =>
    element(
      "li",
      {},
      element(
        "button",
        { type: "button", class: "row", "data-detection": index, onclick: () => onSelect(index) },
        element("span", { class: "dot", color: colors.css(each.label) }),
        element("span", { class: "name" }, each.name),
        element("span", { class: "meter", "aria-hidden": "true" }, bar(each.score)),
        element("span", { class: "score" }, each.score.toFixed(3)),
        element("span", { class: "query" }, `query ${each.query}`),
      ),
    ),
  );
  return element("ol", { class: "list" }, ...rows);
}

function bar(score) {
  const filled = element("i");
  filled.style.width = `${100 * score}%`;
  return filled;
}

/** Queries that match a search text (number or class), best score first. */
function matchingQueries(explanation, search) {
  const text = search.trim().toLowerCase();
  const queries = [...Array(explanation.numQueries).keys()];
  const found = queries.filter((query) => {
    if (!text) return true;
    if (/^\d+$/.test(text)) return String(query).startsWith(text);
    if (text === "detected" || text === "undetected") return explanation.detectionsOf(query).length > 0 === (text === "detected");
    return explanation.name(explanation.label(explanation.last, query)).toLowerCase().includes(text);
  });
  const number = /^\d+$/.test(text) ? Number(text) : null;
  const order = (query) => (query === number ? 2 : explanation.score(explanation.last, query));
  return found.sort((a, b) => order(b) - order(a));
}

/** The list of queries with the path of the box of each over the layers. */
function queryList(explanation, queries, colors, onSelect) {
  const rows = queries.map((query) => {
    const label = explanation.label(explanation.last, query);
    const detected = explanation.detectionsOf(query).length > 0;
    return element(
      "li",
      {},
      element(
        "button",
        { type: "button", class: "row", "data-query": query, onclick: () => onSelect(query) },
        thumbnail(explanation, query, colors.css(label)),
        element("span", { class: "name" }, `${query}`, element("small", {}, explanation.name(label))),
        element("span", { class: "score" }, explanation.score(explanation.last, query).toFixed(3)),
        element("span", { class: "query" }, detected ? "detected" : ""),
      ),
    );
  });
  return element("ol", { class: "list queries" }, ...rows);
}

/** The boxes of a query over the layers, as a small drawing of the image. */
function thumbnail(explanation, query, color) {
  const scale = 44 / Math.max(explanation.width, explanation.height);
  const [width, height] = [explanation.width * scale, explanation.height * scale];
  const rectangles = explanation.layers.map((_, layer) => {
    const [x0, y0, x1, y1] = explanation.box(layer, query).map((value) => value * scale);
    const along = (layer + 1) / explanation.layers.length;
    const path = `M${x0.toFixed(1)} ${y0.toFixed(1)}H${x1.toFixed(1)}V${y1.toFixed(1)}H${x0.toFixed(1)}Z`;
    return element("svg:path", { d: path, "stroke-opacity": (0.15 + 0.85 * along ** 2).toFixed(2) });
  });
  const box = { width: 44, height: 44, viewBox: `${(width - 44) / 2} ${(height - 44) / 2} 44 44`, class: "thumbnail", "aria-hidden": "true", color };
  return element("svg:svg", box, element("svg:rect", { width, height, class: "frame" }), ...rectangles);
}

/** Score, class and box of the selected query over the layers, runners-up and duplicates. */
function queryDetail(explanation, state, colors, actions) {
  if (state.query === null) return element("p", { class: "empty" }, "Select a detection on the image or in the list.");
  const detection = state.detection === null ? null : explanation.detections[state.detection];
  const label = detection ? detection.label : explanation.label(explanation.last, state.query);
  const parts = [
    element(
      "h2",
      {},
      element("span", { class: "dot", color: colors.css(label) }),
      element("span", { class: "title" }, detection ? `${detection.name} ${detection.score.toFixed(3)}` : `${explanation.describe(state.query)}`),
      element("small", {}, detection ? `detection ${state.detection + 1} of ${explanation.detections.length}, query ${state.query}` : `query ${state.query}, no detection`),
    ),
  ];
  if (explanation.layers.length) parts.push(scoreChart(explanation, state, actions), layerTable(explanation, state, colors, actions));
  if (detection?.runners_up?.length) parts.push(runnersUp(detection));
  if (detection?.duplicates?.length) parts.push(duplicates(explanation, detection, actions));
  return element("div", {}, ...parts);
}

/** Score of the detection's class after each layer, as far as stored, and the best score of the query. */
function scoresOverLayers(explanation, state) {
  return explanation.layers.map((layer, index) => ({
    layer: index,
    best: explanation.score(index, state.query),
    own: state.detection === null || !layer.detectionScores ? null : layer.detectionScores.get(state.detection),
  }));
}

function scoreChart(explanation, state, actions) {
  const [width, height, left, top, bottom] = [320, 118, 30, 8, 20];
  const scores = scoresOverLayers(explanation, state);
  const x = (i) => left + (scores.length > 1 ? (i / (scores.length - 1)) * (width - left - 12) : (width - left) / 2);
  const y = (score) => top + (1 - score) * (height - top - bottom);
  const line = (name) => scores.map((each, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(each[name]).toFixed(1)}`).join("");
  const grid = [0, 0.5, 1].flatMap((score) => [
    element("svg:line", { x1: left, x2: width - 8, y1: y(score), y2: y(score), class: "grid" }),
    element("svg:text", { x: left - 6, y: y(score) + 4, "text-anchor": "end" }, score.toFixed(1)),
  ]);
  const threshold = y(explanation.json.threshold);
  grid.push(element("svg:line", { x1: left, x2: width - 8, y1: threshold, y2: threshold, class: "threshold" }));
  const current = currentLayer(explanation, state);
  const dots = scores.flatMap((each, i) => [
    element("svg:text", { x: x(i), y: height - 4, "text-anchor": "middle", class: i === current ? "current" : null }, String(i + 1)),
    element("svg:circle", { cx: x(i), cy: y(each.own ?? each.best), r: i === current ? 5.5 : 3.5, class: i === current ? "current" : null }),
    element("svg:rect", { x: x(i) - 14, y: 0, width: 28, height, class: "target", onclick: () => actions.layer(i) }),
  ]);
  const lines = [element("svg:path", { d: line("best"), class: state.detection === null ? "own" : "best" })];
  if (scores[0]?.own !== null) lines.push(element("svg:path", { d: line("own"), class: "own" }));
  const text = `Score over ${scores.length} layers: ${scores.map((each) => (each.own ?? each.best).toFixed(2)).join(", ")}`;
  return element("svg:svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": text }, ...grid, ...lines, ...dots);
}

/** The layer that the mode shows; null for views of the encoder, the backbone and gradients. */
function currentLayer(explanation, state) {
  const mode = explanation.modes.find((each) => each.key === state.mode);
  return mode && mode.selects === "query" ? mode.entries[state.entry].layer : null;
}

function layerTable(explanation, state, colors, actions) {
  const current = currentLayer(explanation, state);
  const rows = scoresOverLayers(explanation, state).map(({ layer, best, own }) => {
    const label = explanation.label(layer, state.query);
    const before = layer ? explanation.box(layer - 1, state.query) : explanation.reference(0, state.query)?.box;
    const moved = before ? shift(before, explanation.box(layer, state.query)) : null;
    return element(
      "tr",
      { "data-layer": layer, class: layer === current ? "current" : null, onclick: () => actions.layer(layer) },
      element("th", { scope: "row" }, String(layer + 1)),
      element("td", {}, element("span", { class: "dot", color: colors.css(label) }), explanation.name(label)),
      element("td", { class: "number" }, best.toFixed(3)),
      own === null ? null : element("td", { class: "number" }, own.toFixed(3)),
      element("td", { class: "number" }, moved === null ? "–" : moved.toFixed(1)),
      element("td", { class: "number" }, iou(explanation.box(layer, state.query), explanation.box(explanation.last, state.query)).toFixed(2)),
    );
  });
  const detected = state.detection !== null;
  const titles = ["layer", "best class", "score", ...(detected ? ["own class"] : []), "shift / px", "IoU"];
  const head = element("tr", {}, ...titles.map((title, i) => element("th", { scope: "col", class: i > 1 ? "number" : null }, title)));
  const caption = element("caption", {}, "Shift of the center, and IoU with the final box");
  return element("table", {}, caption, element("thead", {}, head), element("tbody", {}, ...rows));
}

function shift(a, b) {
  return Math.hypot(b[0] + b[2] - a[0] - a[2], b[1] + b[3] - a[1] - a[3]) / 2;
}

function iou(a, b) {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  const union = area(a) + area(b) - width * height;
  return union > 0 ? (width * height) / union : 0;
}

function runnersUp(detection) {
  const rows = detection.runners_up.map((each) =>
    element("li", {}, element("span", { class: "name" }, each.name), element("span", { class: "meter", "aria-hidden": "true" }, bar(each.score)), element("span", { class: "score" }, each.score.toFixed(3))),
  );
  return element("section", {}, element("h3", {}, "Runners-up"), element("ol", { class: "list plain runners" }, ...rows));
}

function duplicates(explanation, detection, actions) {
  const rows = detection.duplicates.map((each) =>
    element(
      "li",
      {},
      element(
        "button",
        { type: "button", class: "row", "data-query": each.query, onclick: () => actions.query(each.query) },
        element("span", { class: "name" }, `query ${each.query}`, element("small", {}, explanation.name(each.label))),
        element("span", { class: "score" }, each.score.toFixed(3)),
        element("span", { class: "query" }, `IoU ${each.iou.toFixed(2)}`),
      ),
    ),
  );
  return element("section", {}, element("h3", {}, "Other queries on the same object"), element("ol", { class: "list" }, ...rows));
}
