"use strict";
const HEAT = ["#02020b", "#100b2d", "#251255", "#420f75", "#5d177f", "#762181", "#912b81", "#ad347c", "#c73d73", "#e04c67", "#f2645c", "#fb835f", "#fea16e", "#fec185", "#fde0a1", "#fcfdbf"];
const PAPER = ["#ffffff", "#fffbe6", "#fff6cf", "#ffeeb5", "#fee39c", "#fed37d", "#fec05c", "#fdab43", "#f79430", "#ee7f20", "#e06a14", "#cf560b", "#b94706", "#9f3a04", "#852f05", "#6b2607"];
const add = (made, attributes, children) => {
  for (const [key, value] of Object.entries(attributes ?? {})) if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  made.append(...(children ?? []).filter(child => child !== null));
  return made;
};
const html = (name, attributes, ...children) => add(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => add(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
const text = (x, y, words, anchor = "middle") => svg("text", { x, y, "text-anchor": anchor }, words);
const digits = value => value === null || value === undefined ? "–" : value.toFixed(3);
const bytes = packed => packed ? Uint8Array.from(atob(packed), character => character.charCodeAt(0)) : null;
const figure = (caption, drawn) => html("figure", {}, html("figcaption", {}, ...(Array.isArray(caption) ? caption : [caption])), drawn);
const key = (kind, words) => html("span", {}, html("i", { class: `key ${kind}`, "aria-hidden": "true" }), words + " ");

/* Lines over [[label, y, ...], ...]: one line per column of y in 0..1; `chosen` is the label that is ringed. */
function lines(points, classes, chosen, words) {
  const width = 360, height = 150, left = 30, bottom = 24, top = 8;
  const x = i => left + (points.length > 1 ? i * (width - left - 12) / (points.length - 1) : (width - left) / 2), y = v => top + (1 - v) * (height - top - bottom);
  const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words });
  for (const v of [0, .5, 1]) made.append(svg("path", { class: "grid", d: `M${left} ${y(v)}H${width}` }), text(left - 5, y(v) + 4, String(v), "end"));
  const every = Math.ceil(points.length / 12);
  points.forEach((point, i) => { if (i % every === 0) made.append(text(x(i), height - 6, String(point[0] ?? "–"))); });
  classes.forEach((name, k) => {
    const known = points.map((point, i) => [x(i), point[k + 1]]).filter(([, v]) => v !== null && v !== undefined && v >= 0);
    made.append(svg("path", { class: name, d: known.map(([a, v], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${y(v).toFixed(1)}`).join("") }));
    for (const [a, v] of known) made.append(svg("circle", { class: `dot${k + 1}`, cx: a.toFixed(1), cy: y(v).toFixed(1), r: 2.5 }));
  });
  const at = points.findIndex(point => point[0] === chosen);
  if (at >= 0 && points[at][1] !== null && points[at][1] >= 0) made.append(svg("circle", { class: "chosen", cx: x(at), cy: y(points[at][1]), r: 6 }));
  return made;
}

/* Scores of test: positives above the line, negatives below, the cutoff dashed. */
function distribution(scores, cutoff) {
  const width = 360, height = 170, left = 8, middle = 76, tall = 62, n = scores.positive.length;
  const most = side => Math.max(1, ...scores[side]), step = (width - 2 * left) / n;
  const said = `scores of test from ${scores.low} to ${scores.high}, cutoff ${cutoff ?? "none"}`;
  const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
  for (let i = 0; i < n; i++) {
    const up = tall * scores.positive[i] / most("positive"), down = tall * scores.negative[i] / most("negative");
    const from = (scores.low + i * (scores.high - scores.low) / n).toPrecision(3);
    if (up) made.append(svg("rect", { class: "positive", x: left + i * step, y: middle - up, width: step - 1, height: up }, svg("title", {}, `${scores.positive[i]} positives from ${from}`)));
    if (down) made.append(svg("rect", { class: "negative", x: left + i * step, y: middle + 1, width: step - 1, height: down }, svg("title", {}, `${scores.negative[i]} negatives from ${from}`)));
  }
  made.append(svg("path", { class: "grid", d: `M${left} ${middle}H${width - left}` }));
  if (cutoff !== null) {
    const x = left + (cutoff - scores.low) / (scores.high - scores.low) * (width - 2 * left);
    made.append(svg("path", { class: "cut", d: `M${x} 6V146` }), text(Math.min(Math.max(x, 40), width - 40), 166, `cutoff ${cutoff}`));
  }
  if (cutoff === null || cutoff > scores.low + .3 * (scores.high - scores.low)) made.append(text(left, 166, String(scores.low), "start"));
  if (cutoff === null || cutoff < scores.low + .7 * (scores.high - scores.low)) made.append(text(width - left, 166, String(scores.high), "end"));
  return made;
}

const outcome = (detected, label) => `${detected === label ? "true" : "false"} ${detected ? "positive" : "negative"}`;
const flags = value => ({ step: value & 15, above: !!(value & 16), inside: !!(value & 32) });
const told = (i, value) => {
  const { step, above, inside } = flags(value);
  return `token ${i}: ${step === 15 ? "1.5 or more" : (step / 10).toFixed(1)} of the cutoff${above ? ", at or above the cutoff" : ""}; ${value & 64 ? "truth unknown" : inside ? "in the concept" : "not in the concept"}`;
};

/* A sample: its text with tokens on their colours, its picture under the heat map, or its tokens' places alone. */
function seen(sample, shapes, packed) {
  const values = bytes(packed);
  if (sample.pieces) return words(sample.pieces, values, sample.more);
  const shape = sample.shape === undefined ? null : shapes[sample.shape];
  if (shape && shape.w) return patches(sample, shape, values);
  if (sample.picture) return html("img", { src: `data:image/jpeg;base64,${sample.picture}`, alt: `sample ${sample.id}` });
  if (shape && values) return words([...values].flatMap((_, i) => [[String(i), i], [" "]]), values, 0);
  return null;
}

function words(pieces, values, more) {
  const made = html("p", { class: "words", dir: "auto" });
  for (const [shown, ...tokens] of pieces) {
    if (!tokens.length || !values) { made.append(shown); continue; }
    const its = tokens.map(token => flags(values[token] ?? 0)), step = Math.max(...its.map(one => one.step));
    const span = html("span", { class: `t${its.some(one => one.above) ? " s" : ""}${its.some(one => one.inside) ? " i" : ""}`, title: tokens.map(token => told(token, values[token] ?? 0)).join("\n") }, shown);
    span.style.background = PAPER[step];
    span.style.color = step > 10 ? "#fff" : "#000";
    made.append(span);
  }
  if (more) made.append(html("span", { class: "soft" }, ` … and ${more.toLocaleString("en")} more characters`));
  return made;
}

function patches(sample, shape, values) {
  const made = svg("svg", { viewBox: `0 0 ${shape.w} ${shape.h}`, role: "img", "aria-label": `patches of sample ${sample.id}` });
  if (sample.picture) made.append(svg("image", { width: shape.w, height: shape.h, preserveAspectRatio: "none", href: `data:image/jpeg;base64,${sample.picture}` }));
  if (!values) return sample.picture ? made : null;
  const boxes = shape.boxes ?? shape.rows.flatMap(([top, bottom]) => shape.columns.map(([left, right]) => [top, left, bottom, right]));
  const thin = shape.w / 250, edges = new Map(), dots = [];
  boxes.forEach(([top, left, bottom, right], i) => {
    const { step, above, inside } = flags(values[i]);
    made.append(svg("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: HEAT[step], "fill-opacity": sample.picture ? (.12 + .045 * step).toFixed(2) : 1, "shape-rendering": "crispEdges" }, svg("title", {}, told(i, values[i]))));
    if (above) for (const edge of [`M${left} ${top}H${right}`, `M${left} ${bottom}H${right}`, `M${left} ${top}V${bottom}`, `M${right} ${top}V${bottom}`]) edges.set(edge, (edges.get(edge) ?? 0) + 1);
    if (inside) dots.push(svg("circle", { cx: (left + right) / 2, cy: (top + bottom) / 2, r: Math.min(right - left, bottom - top) * .14, fill: "#fff", stroke: "#000", "stroke-width": thin }));
  });
  const outline = [...edges].filter(([, n]) => n === 1).map(([edge]) => edge).join("");
  for (const [colour, width] of [["#000", 4.5], ["#fff", 2]]) made.append(svg("path", { d: outline, fill: "none", stroke: colour, "stroke-width": width * thin, "stroke-linecap": "square" }));
  made.append(...dots);
  return made;
}

/* What the colours and marks of lit tokens mean. */
function legend(image) {
  const colours = image ? HEAT : PAPER, scale = html("span", { class: "scale", "aria-hidden": "true" });
  for (const colour of colours) { const cell = html("i", {}); cell.style.background = colour; scale.append(cell); }
  return html("p", { class: "soft" }, "Tokens: 0", scale, "1.5 of the cutoff and above (0 = the median test token). ", image ? "Outlined" : "Boxed", ": at or above the cutoff. ", image ? "A dot" : "A dotted line", ": in the concept (ground truth).");
}
