"use strict";
// The page of a network. `page` is what Python knows (pages/network.py and pages/explain.py); the numbers of feature maps
// and weights are in one compressed text beside it. Sections: numbers, pictures, the flow, one layer, where it looks, table.
(async () => {
const page = JSON.parse(document.getElementById("data").textContent);
const nodes = page.nodes, images = page.images;
const state = { image: 0, node: 0, channel: 0, pixel: [0, 0] };

// --- numbers ---

function el(tag, settings = {}, ...children) {
  const svg = ["svg", "path", "rect", "line", "circle", "text", "g", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(settings)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.flat(Infinity));
  return made;
}
const byId = (id) => document.getElementById(id);

// Three digits; what is shown is what the tests compare with the network.
function number(v) {
  if (v === null || Number.isNaN(v)) return "NaN";
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  const text = size >= 1e5 || size < 1e-4 ? v.toExponential(2) : size >= 100 ? v.toFixed(size >= 1000 ? 0 : 1) : v.toPrecision(3);
  return text.replace("-", "−");
}
const signed = (v) => (v < 0 ? "− " : "+ ") + number(Math.abs(v));
// A sum of products, or of numbers alone, as text.
const added = (terms) => terms.map(([a, b], k) => (k ? " " + signed(a) : number(a)) + (b === undefined ? "" : `·${number(b)}`)).join("");
const whole = (v) => Math.round(v).toLocaleString("en");
const percent = (v) => (100 * v).toFixed(v > 0 && v < 0.001 ? 2 : 1) + " %";

let bytes = null;
const half = new Float32Array(65536);
async function unpack() {
  const text = byId("blob").textContent.trim();
  if (!text) return;
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  bytes = await new Response(stream).arrayBuffer();
  for (let i = 0; i < 65536; i++) {
    const exponent = (i >> 10) & 31, fraction = i & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? (fraction ? NaN : Infinity)
      : (1 + fraction / 1024) * 2 ** (exponent - 15);
    half[i] = i & 32768 ? -size : size;
  }
}
const arrays = new Map();
function array(ref) {
  if (!arrays.has(ref)) {
    const [type, at, shape] = ref, count = shape.reduce((a, b) => a * b, 1);
    arrays.set(ref, type === "f4" ? new Float32Array(bytes, at, count) : new Uint16Array(bytes, at, count));
  }
  return arrays.get(ref);
}
function unscaled(stored, which, size) {
  const scale = array(stored.scale)[which], raw = array(stored.values).subarray(which * size, (which + 1) * size);
  return Float32Array.from(raw, (v) => half[v] * scale);
}

const hw = (node) => (node.shape.length === 3 ? node.shape.slice(0, 2) : [1, 1]);
const source = (node, which = 0) => nodes[node.inputs[which]];
// Where a channel of the network lies among those that the page holds of a node; -1 if it does not.
const place = (node, channel) => node.channels.indexOf(channel);
const maps = new Map();
// The feature map (h * w numbers) at a place of a node, for the image that is shown.
function map(node, at) {
  const key = `${node.name}/${at}/${state.image}`;
  if (!maps.has(key)) {
    const [h, w] = hw(node);
    let values;
    if (node.maps) values = unscaled(node.maps, state.image * node.channels.length + at, h * w);
    else {
      const most = node.kind === "relu" ? node.most ?? Infinity : Infinity, least = node.kind === "relu" ? 0 : -Infinity;
      values = map(source(node), place(source(node), node.channels[at])).map((v) => Math.min(Math.max(v, least), most));
    }
    maps.set(key, values);
  }
  return maps.get(key);
}
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  return low > high ? [0, 0] : [low, high];
}

// --- pictures ---

// 256 colours each: from vermilion below zero to blue above, as the bars have them, and from dark to bright.
const table = (stops) => Array.from({ length: 256 }, (_, k) => {
  const t = (k / 255) * (stops.length - 1), from = Math.min(Math.floor(t), stops.length - 2);
  return stops[from].map((c, n) => Math.round(c + (stops[from + 1][n] - c) * (t - from)));
});
const SIGNED = table([[213, 94, 0], [245, 245, 245], [0, 114, 178]]);
const POSITIVE = table([[0, 32, 76], [58, 75, 107], [123, 122, 119], [188, 174, 107], [255, 234, 70]]);
// What the ends of the colours stand for: as far below zero as above it, where there is anything below.
function rangeOf(values) {
  const [low, high] = extent(values), most = Math.max(-low, high);
  return low < 0 ? [-most, most] : [0, high];
}
function colour(v, [low, high]) {
  if (!Number.isFinite(v)) return [255, 0, 255];
  const t = high > low ? (v - low) / (high - low) : 0;
  return (low < 0 ? SIGNED : POSITIVE)[Math.round(255 * Math.min(Math.max(t, 0), 1))];
}
function paint(canvas, values, h, w, range = rangeOf(values)) {
  canvas.width = w; canvas.height = h;
  const context = canvas.getContext("2d"), made = context.createImageData(w, h), data = made.data;
  for (let i = 0; i < h * w; i++) {
    const rgb = colour(values[i], range);
    data[4 * i] = rgb[0]; data[4 * i + 1] = rgb[1]; data[4 * i + 2] = rgb[2]; data[4 * i + 3] = 255;
  }
  context.putImageData(made, 0, 0);
  return canvas;
}
const thumbnail = (node, at) => paint(el("canvas"), map(node, at), ...hw(node));
function scaleOf(values) {
  const ends = rangeOf(values);
  const steps = Float32Array.from({ length: 48 }, (_, i) => ends[0] + ((ends[1] - ends[0]) * i) / 47);
  return el("div", { class: "scale" }, number(ends[0]), paint(el("canvas"), steps, 1, 48, ends), number(ends[1]));
}
// A large feature map with a frame on it. onpixel makes it answer to mouse, finger and arrow keys.
function big(values, h, w, label, onpixel = null, small = false) {
  const frame = el("div", { class: "at", hidden: true }), canvas = paint(el("canvas"), values, h, w);
  const box = el("div", { class: "big" + (small ? " small" : "") }, canvas, frame);
  let pixel = [0, 0];
  const show = (top, left, height, width) => {
    if (height === 1 && width === 1) pixel = [top, left];
    frame.hidden = false;
    const share = { top: top / h, left: left / w, height: height / h, width: width / w };
    for (const [side, value] of Object.entries(share)) frame.style[side] = `${100 * value}%`;
  };
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  if (onpixel) {
    canvas.tabIndex = 0;
    const go = (i, j) => { pixel = [i, j]; onpixel(i, j); };
    const point = (event) => {
      const { left, top, width, height } = canvas.getBoundingClientRect();
      const inside = (v, n) => Math.min(Math.max(Math.floor(v * n), 0), n - 1);
      go(inside((event.clientY - top) / height, h), inside((event.clientX - left) / width, w));
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [i, j] = pixel;
      go(Math.min(Math.max(i + step[0], 0), h - 1), Math.min(Math.max(j + step[1], 0), w - 1));
    });
  }
  return { box, show, canvas };
}
const figure = (content, ...caption) => el("figure", {}, content, el("figcaption", {}, ...caption));
function bars(rows) {
  const most = Math.max(...rows.map((row) => Math.abs(row[1])), 1e-30);
  return el("div", { class: "bars" }, rows.map(([name, value, text]) => [
    el("span", {}, name),
    el("span", { class: "bar" + (value < 0 ? " less" : ""), style: `width:${(100 * Math.abs(value)) / most}%` }),
    el("span", { class: "number" }, text),
  ]));
}

// --- the flow ---

function drawAnswer() {
  byId("images").replaceChildren(...images.map((image, n) => el(
    "button", { "aria-pressed": n === state.image, onclick: () => { state.image = n; drawAll(); } },
    el("figure", {}, el("img", { src: image.source, alt: image.name }), el("figcaption", {}, image.name)))));
  const rows = images[state.image].top.slice(0, 5).map((k) => [page.classes[k.class], k.probability, percent(k.probability)]);
  byId("classes").replaceChildren(bars(rows));
}
function drawFlow() {
  const { key, unit, note } = page.measures.find((m) => m.key === byId("measure").value) ?? page.measures[0];
  const most = Math.max(...nodes.map((node) => node[key] ?? 0)) || 1;
  const size = (v) => (key === "ms" ? number(v) + " ms" : v >= 1e6 ? number(v / 1e6) + " M" : v >= 1e3 ? number(v / 1e3) + " k" : v) +
    (unit && key !== "ms" ? unit : "");
  byId("measure-note").textContent = note;
  byId("flow").replaceChildren(...nodes.map((node, i) => {
    const column = el("div", { class: `layer kind-${node.kind}` + (images.length && i === state.node ? " chosen" : "") });
    const words = `${node.title}, ${node.shape.join(" × ")}`;
    const value = node[key] ?? 0;
    column.append(
      el("div", { class: "head", title: `${node.name}: ${words}` }, el("b", {}, node.name.split(".").map((part, k) => (k ? [".", el("wbr"), part] : part))), el("span", {}, node.title),
        el("span", { class: "quiet" }, node.shape.join("×"))),
      el("div", { class: "cost", title: `${node.name}: ${size(value)}` }, value ? el("span", {}, size(value)) : "",
        el("i", { style: `height:${(54 * value) / most}px` })));
    if (images.length) {
      column.append(el("div", { class: "maps" }, strongest(node).slice(0, 4).map((at) => el(
        "button", {
          class: "map", "aria-pressed": i === state.node && at === state.channel, "data-node": node.name,
          "data-channel": node.channels[at], "aria-label": `${node.name}, channel ${node.channels[at]}`,
          title: `channel ${node.channels[at]}`, onclick: () => choose(i, at),
        }, thumbnail(node, at)))));
    }
    return column;
  }));
}
const strongest = (node) => node.channels.map((_, at) => at).sort((a, b) => strength(node, b) - strength(node, a));
const strengths = new Map();
function strength(node, at) {
  const key = `${node.name}/${at}/${state.image}`;
  if (!strengths.has(key)) strengths.set(key, mean(map(node, at).map(Math.abs)));
  return strengths.get(key);
}
function peak(node, at) { // the pixel whose number is largest: where there is most to see
  const sizes = map(node, at).map(Math.abs), k = sizes.indexOf(extent(sizes)[1]), w = hw(node)[1];
  return [Math.floor(Math.max(k, 0) / w), Math.max(k, 0) % w];
}
function choose(i, at, pixel = null) {
  state.node = i;
  state.channel = at;
  state.pixel = pixel ?? peak(nodes[i], at);
  for (const column of byId("flow").querySelectorAll(".chosen")) column.classList.remove("chosen");
  byId("flow").children[i].classList.add("chosen");
  for (const button of document.querySelectorAll(".map"))
    button.setAttribute("aria-pressed", button.dataset.node === nodes[i].name && +button.dataset.channel === nodes[i].channels[at]);
  drawDetail();
}

// --- one layer: a view is [parts to show, function of a pixel that updates them and returns the formula] ---

const taps = (node, i, j) => { // the window of pixel (i, j): top, left, height, width
  const [kh, kw] = node.kernel ?? [1, 1], [sh, sw] = node.stride ?? [1, 1], [top, left] = node.padding ?? [0, 0];
  return [i * sh - top, j * sw - left, kh, kw];
};
function patch(values, h, w, [top, left, kh, kw], outside = 0) {
  return Array.from({ length: kh * kw }, (_, k) => {
    const i = top + Math.floor(k / kw), j = left + (k % kw);
    return i >= 0 && i < h && j >= 0 && j < w ? values[i * w + j] : outside;
  });
}
function grid(values, width, caption) {
  const [low, high] = extent(values), most = Math.max(-low, high, 1e-30), rows = [];
  for (let k = 0; k < values.length; k += width) {
    rows.push(el("tr", {}, Array.from(values.slice(k, k + width), (v) => {
      const [r, g, b] = colour(v, [-most, most]);
      return el("td", { class: "number", style: `background:rgb(${r},${g},${b});color:${r + g + b > 380 ? "#000" : "#fff"}` }, number(v));
    })));
  }
  return figure(el("table", { class: "grid" }, rows), caption);
}
const output = (node, at) => (i, j) => map(node, at)[i * hw(node)[1] + j];

function depthwiseView(node, at) {
  const before = source(node), [h, w] = hw(before), values = map(before, place(before, node.channels[at]));
  const input = big(values, h, w, "the input map", null), size = node.kernel[0] * node.kernel[1], count = node.channels.length;
  const kernel = Array.from({ length: size }, (_, k) => array(node.weight)[k * count + at]);
  const grids = el("div", { class: "grids" }), bias = node.bias ? node.bias[at] : 0, [oh, ow] = hw(node);
  let timer = null;
  const slide = el("button", { class: "tool", onclick: () => {
    if (timer) { clearInterval(timer); timer = null; slide.textContent = "▶ slide the kernel"; return; }
    slide.textContent = "■ stop";
    timer = setInterval(() => {
      if (!slide.isConnected) return clearInterval(timer);
      const next = (state.pixel[0] * ow + state.pixel[1] + 1) % (oh * ow);
      setPixel(Math.floor(next / ow), next % ow);
    }, 120);
  } }, "▶ slide the kernel");
  const parts = [figure(input.box, `its one input: ${before.name}, channel ${node.channels[at]}`, scaleOf(values)),
    el("div", { class: "wide" }, grids, slide)];
  return [parts, (i, j) => {
    const frame = taps(node, i, j), seen = patch(values, h, w, frame), width = node.kernel[1];
    input.show(...frame);
    const products = seen.map((v, k) => v * kernel[k]);
    grids.replaceChildren(grid(seen, width, "input"), el("span", {}, "×"), grid(kernel, width, "kernel"), el("span", {}, "="),
      grid(products, width, "products"));
    return `${added(seen.map((v, k) => [kernel[k], v]))}${bias ? " " + signed(bias) : ""} = ${number(output(node, at)(i, j))}`;
  }];
}

// Standard and pointwise convolutions and linear layers: a sum over input maps, the largest contributions first.
function sumView(node, at) {
  const before = source(node), [h, w] = hw(before), weight = array(node.weight), outputs = node.channels.length;
  const inputs = before.channels.length, [kh, kw] = node.kernel ?? [1, 1], bias = node.bias ? node.bias[at] : 0;
  const kernel = (c) => Array.from({ length: kh * kw }, (_, k) => weight[(k * inputs + c) * outputs + at]);
  const worth = before.channels.map((_, c) => kernel(c).reduce((a, k) => a + Math.abs(k), 0) * strength(before, c));
  const order = worth.map((_, c) => c).sort((a, b) => worth[b] - worth[a]), shown = order.slice(0, 10);
  const largest = big(map(before, order[0]), h, w, "the input map that contributes most");
  const rows = el("div", { class: "terms" });
  const thumbs = new Map(shown.map((c) => [c, kh * kw > 1 ? kernelPicture(kernel(c), kh, kw) : thumbnail(before, c)]));
  const parts = [figure(largest.box, `the input that contributes most to this map: ${before.name}, channel ${before.channels[order[0]]}`,
    scaleOf(map(before, order[0]))), rows];
  return [parts, (i, j) => {
    const frame = taps(node, i, j), total = output(node, at)(i, j);
    largest.show(...frame);
    const values = order.map((c) => [c, patch(map(before, c), h, w, frame).reduce((a, v, k) => a + v * kernel(c)[k], 0)]);
    const most = Math.max(...values.map(([, v]) => Math.abs(v)), 1e-30);
    const line = (picture, name, how, value, style = "") => [picture, el("span", { class: style }, name), el("span", { class: "quiet number" }, how),
      el("span", { class: "bar" + (value < 0 ? " less" : ""), style: `width:${(100 * Math.min(Math.abs(value), most)) / most}%` }),
      el("span", { class: "number " + style }, number(value))];
    const top = values.slice(0, shown.length), others = values.slice(shown.length).reduce((a, [, v]) => a + v, 0);
    const absent = total - bias - others - top.reduce((a, [, v]) => a + v, 0), left = before.count - before.channels.length;
    rows.replaceChildren(...top.flatMap(([c, v]) => {
      const how = kh * kw > 1 ? `kernel · ${kh}×${kw} pixels` : `${number(kernel(c)[0])} × ${number(patch(map(before, c), h, w, frame)[0])}`;
      return line(thumbs.get(c), `channel ${before.channels[c]}`, how, v);
    }), ...(values.length > shown.length ? line(el("span"), `${values.length - shown.length} more`, "held by this page", others) : []),
    ...(left ? line(el("span"), `${left} others`, "not in this page", absent) : []),
    ...(bias ? line(el("span"), "bias", "", bias) : []), ...line(el("span"), "sum", "", total, "total"));
    const first = top.slice(0, 4).map(([c, v]) => kh * kw > 1 ? [v] : [kernel(c)[0], patch(map(before, c), h, w, frame)[0]]);
    return `${added(first)}${before.count > 4 ? ` + … (${before.count} inputs)` : ""}${bias ? " " + signed(bias) : ""} = ${number(total)}`;
  }];
}
const kernelPicture = (values, kh, kw) => {
  const most = Math.max(...values.map(Math.abs)) || 1;
  return paint(el("canvas", { title: values.map(number).join("  ") }), values, kh, kw, [-most, most]);
};

// A function of one number, drawn over the histogram of what goes in.
function curve(values, f, { cut = () => false, mark = null, label }) {
  const [w, h, m] = [360, 240, 58], finite = values.filter(Number.isFinite);
  let [low, high] = extent(finite);
  if (mark) { low = Math.min(low, mark[0]); high = Math.max(high, mark[1]); }
  if (!(high > low)) [low, high] = [low - 1, high + 1];
  const bins = new Array(30).fill(0), bin = (v) => Math.min(Math.floor(((v - low) / (high - low)) * 30), 29);
  finite.forEach((v) => bins[bin(v)]++);
  const x = (v) => m + ((v - low) / (high - low)) * (w - m - 8), top = Math.max(...bins);
  const steps = Array.from({ length: 121 }, (_, k) => low + ((high - low) * k) / 120), ys = steps.map(f);
  let [least, most] = extent(ys);
  if (!(most > least)) [least, most] = [least - 1, most + 1];
  const y = (v) => h - 24 - ((v - least) / (most - least)) * (h - 40);
  const dot = el("circle", { class: "dot", r: 5, cx: -20, cy: 0 });
  const svg = el("svg", { viewBox: `0 0 ${w} ${h}`, width: w, height: h, role: "img", "aria-label": label },
    bins.map((n, k) => {
      const from = low + ((high - low) * k) / 30, middle = from + (high - low) / 60, tall = (n / top) * (h - 40);
      return el("rect", { class: cut(middle) ? "cut" : "kept", x: x(from), width: (w - m - 8) / 30 - 1, y: h - 24 - tall, height: tall });
    }),
    el("line", { class: "axis", x1: m, x2: w, y1: h - 24, y2: h - 24 }),
    mark ? mark.map((v) => el("line", { class: "mark", x1: x(v), x2: x(v), y1: 12, y2: h - 24 })) : [],
    el("path", { class: "curve", d: "M" + steps.map((v, k) => `${x(v).toFixed(1)},${y(ys[k]).toFixed(1)}`).join("L") }), dot,
    el("text", { x: m, y: h - 6 }, number(low)), el("text", { x: w - 8, y: h - 6, "text-anchor": "end" }, number(high)),
    el("text", { x: 0, y: 14 }, number(most)), el("text", { x: 0, y: h - 28 }, number(least)));
  return [svg, (v) => { dot.setAttribute("cx", x(v)); dot.setAttribute("cy", y(f(v))); }];
}
function curveView(node, at, f, options, formula, words) {
  const before = source(node), values = map(before, place(before, node.channels[at])), [h, w] = hw(before);
  const [svg, show] = curve(values, f, options), input = big(values, h, w, "the input map");
  const parts = [figure(input.box, `its input: ${before.name}, channel ${node.channels[at]}`, scaleOf(values)), figure(svg, words(values))];
  return [parts, (i, j) => {
    const v = values[i * w + j];
    show(v);
    input.show(i, j, 1, 1);
    return formula(v, output(node, at)(i, j));
  }];
}
function batchnormView(node, at) {
  const [gamma, beta, mu, variance] = ["gamma", "beta", "mean", "variance"].map((name) => node[name][at]);
  const deviation = Math.sqrt(variance + node.eps), scale = gamma / deviation, shift = beta - mu * scale;
  return curveView(node, at, (v) => scale * v + shift, { mark: [mu - deviation, mu + deviation], label: "the line of BatchNorm" },
    (v, y) => `γ·(x − μ)/√(σ² + ε) + β = ${number(gamma)}·(${number(v)} ${signed(-mu)})/${number(deviation)} ${signed(beta)} = ` +
      `${number(scale)}·${number(v)} ${signed(shift)} = ${number(y)}`,
    () => [`A line, the same for every pixel of the channel: scale ${number(scale)}, shift ${number(shift)}. Blocks: the values of this map; ` +
      `dashed: one standard deviation (${number(deviation)}) around the mean (${number(mu)}) of the images it was trained on.`]);
}
const clip = (v, low, high) => Math.min(Math.max(v, low), high);
function activationView(node, at) {
  const most = node.most ?? Infinity, end = Number.isFinite(most) ? number(most) : "";
  const kinds = {
    relu: [(v) => clip(v, 0, most), (v) => v <= 0 || v >= most, (x) => (end ? `min(max(${x}, 0), ${end})` : `max(${x}, 0)`)],
    "hard-swish": [(v) => (v * clip(v + 3, 0, 6)) / 6, (v) => v <= -3, (x) => `${x}·min(max(${x} + 3, 0), 6)/6`],
    "hard-sigmoid": [(v) => clip(v + 3, 0, 6) / 6, (v) => v <= -3 || v >= 3, (x) => `min(max(${x} + 3, 0), 6)/6`],
  };
  const [f, cut, text] = kinds[node.kind];
  return curveView(node, at, f, { cut, label: node.title }, (v, y) => `${text(number(v))} = ${number(y)}`, (values) => {
    const share = values.filter((v) => cut(v)).length / values.length;
    return [`${percent(share)} of the pixels are cut off (vermilion): there the gradient is 0.`];
  });
}
// The linear layer right after an average, or null: then each pixel's share of a logit is known.
function linearAfter(node) {
  let at = nodes.indexOf(node);
  for (;;) {
    const readers = nodes.filter((other) => other.inputs.includes(at));
    if (readers.length !== 1) return null;
    if (readers[0].kind === "linear") return readers[0];
    if (!["flatten", "dropout"].includes(readers[0].kind)) return null;
    at = nodes.indexOf(readers[0]);
  }
}
function averageView(node, at) {
  const before = source(node), [h, w] = hw(before), values = map(before, place(before, node.channels[at]));
  const input = big(values, h, w, "the input map"), last = linearAfter(node), single = hw(node)[0] * hw(node)[1] === 1;
  const parts = [figure(input.box, `its input: ${before.name}, channel ${node.channels[at]}`, scaleOf(values))];
  if (last && single && place(source(last), node.channels[at]) >= 0) {
    const average = map(node, at)[0], count = last.channels.length, weight = array(last.weight), c = place(source(last), node.channels[at]);
    const rows = images[state.image].top.slice(0, 5).filter((k) => place(last, k.class) >= 0)
      .map((k) => [k, weight[c * count + place(last, k.class)]])
      .map(([k, factor]) => [page.classes[k.class], factor * average, `${number(factor)} × ${number(average)} = ${number(factor * average)}`]);
    parts.push(el("div", { class: "wide" }, el("h3", {}, "What this channel adds to the logits"), bars(rows)));
  }
  return [parts, (i, j) => {
    const frame = node.kernel ? taps(node, i, j) : [0, 0, h, w], seen = patch(values, h, w, frame);
    input.show(...frame);
    return `(${added(seen.slice(0, 9).map((v) => [v]))}${seen.length > 9 ? " + …" : ""})/${seen.length} = ${number(output(node, at)(i, j))}`;
  }];
}
function maxView(node, at) {
  const before = source(node), [h, w] = hw(before), values = map(before, place(before, node.channels[at]));
  const input = big(values, h, w, "the input map"), grids = el("div", { class: "grids" });
  return [[figure(input.box, `its input: ${before.name}, channel ${node.channels[at]}`, scaleOf(values)), grids], (i, j) => {
    const frame = taps(node, i, j), seen = patch(values, h, w, frame, -Infinity);
    input.show(...frame);
    grids.replaceChildren(grid(seen, frame[3], "the window"));
    return `max(${seen.map(number).join(", ")}) = ${number(output(node, at)(i, j))}`;
  }];
}
function joinView(node, at) {
  const pairs = node.inputs.map((k) => [nodes[k], place(nodes[k], node.channels[at])]);
  const pictures = pairs.map(([before, c]) => big(map(before, c), ...hw(before), before.name));
  const parts = pairs.map(([before, c], k) => figure(pictures[k].box, `${before.name}, channel ${before.channels[c]}`, scaleOf(map(before, c))));
  parts.splice(1, 0, el("span", {}, node.kind === "sum" ? "+" : "×"));
  return [parts, (i, j) => {
    const [a, b] = pairs.map(([before, c], k) => {
      const [h, w] = hw(before), [y, x] = h * w === 1 ? [0, 0] : [i, j];
      pictures[k].show(y, x, 1, 1);
      return map(before, c)[y * w + x];
    });
    const y = number(output(node, at)(i, j));
    return node.kind === "sum" ? `${number(a)} ${signed(b)} = ${y}` : `${number(a)} × ${number(b)} = ${y}; the factor is the same for the whole channel`;
  }];
}
function plainView(node, at) {
  const words = { image: "What goes in: the image, less its mean, divided by its standard deviation.", flatten: "The numbers of the feature map in a row.",
    dropout: "Dropout does nothing when a trained network is used.", pad: "Zeros around the map.", subsample: "The pixels that the stride keeps, and zeros for new channels." };
  return [[el("p", {}, words[node.kind] ?? "")], (i, j) => `${number(output(node, at)(i, j))}`];
}
const VIEWS = {
  depthwise: depthwiseView, conv: sumView, pointwise: sumView, linear: sumView, batchnorm: batchnormView, relu: activationView,
  "hard-swish": activationView, "hard-sigmoid": activationView, "average-pool": averageView, "global-average-pool": averageView,
  squeeze: averageView, "max-pool": maxView, sum: joinView, gate: joinView,
};
let setPixel = () => {};
function drawDetail() {
  const node = nodes[state.node], at = state.channel, [h, w] = hw(node), values = map(node, at);
  const formula = el("p", { class: "formula number", id: "formula", "aria-live": "polite" });
  const [parts, update] = (VIEWS[node.kind] ?? plainView)(node, at);
  setPixel = (i, j) => {
    state.pixel = [i, j];
    mine.show(i, j, 1, 1);
    formula.textContent = `${node.name}[${node.shape.length === 3 ? `${i}, ${j}, ` : ""}${node.channels[at]}] = ${update(i, j)}`;
  };
  const mine = big(values, h, w, "this feature map; arrow keys move the pixel", (i, j) => setPixel(i, j));
  const strip = el("div", { class: "strip", role: "group", "aria-label": "channels of this layer" }, node.channels.map((channel, c) => el(
    "button", { class: "map", "aria-pressed": c === at, "aria-label": `channel ${channel}`, title: `channel ${channel}`, "data-node": node.name,
      "data-channel": channel, onclick: () => choose(state.node, c, state.pixel) }, thumbnail(node, c))));
  const held = node.channels.length < node.count ? `${node.channels.length} of its ${node.count} channels` : `its ${node.count} channels`;
  const step = (by, text) => el("button", { class: "tool", disabled: !nodes[state.node + by], onclick: () => {
    const next = nodes[state.node + by], same = place(next, node.channels[at]);
    choose(state.node + by, Math.max(same, 0));
  } }, text);
  byId("detail").replaceChildren(
    el("h2", {}, `${node.name}: ${node.title}`),
    el("p", { class: "quiet" }, `${node.shape.join(" × ")}; ${whole(node.macs)} MACs, ${whole(node.params)} parameters; ${held}:`),
    strip,
    el("div", { class: "stage" }, figure(mine.box, named(node, at), scaleOf(values)), parts),
    formula,
    el("p", {}, step(-1, "← layer before"), " ", step(1, "next layer →")));
  setPixel(...state.pixel);
}
function named(node, at) {
  const channel = node.channels[at];
  return nodes.indexOf(node) === nodes.length - 1 ? `the logit of ${page.classes[channel]}` : `channel ${channel}; move over it: the numbers of that pixel are below`;
}

// --- where it looks ---

const METHODS = {
  cam: ["class activation map", "Exact: the mean of these contributions, plus the bias, is the logit. It does not prove that the network knows the object: what it adds may lie beside it, and a cell depends on more of the image than it covers."],
  gradcam: ["Grad-CAM", "Each map of the layer times the mean of its gradient, added up; below zero is not shown. In early layers it says little about the class: one factor for a whole map cannot tell its pixels apart."],
  saliency: ["saliency", "How much a small change of this pixel would change the logit. It does not prove that the pixel was used: edges are bright in networks that have learned nothing, too."],
  occlusion: ["occlusion", "How much the logit falls when a grey square hides this place. It does not prove what matters alone: parts can stand in for each other, and an image with a grey square is unlike any that was learned."],
};
function drawLook() {
  const { classes, layers, maps: found, square, no_cam: reason } = page.look, image = images[state.image];
  const select = (label, options, change) => {
    const chosen = el("select", { "aria-label": label, onchange: change }, options.map(([value, text]) => el("option", { value }, text)));
    return [el("label", {}, label, chosen), chosen];
  };
  const methods = Object.entries(METHODS).filter(([key]) => key === "gradcam" || found[key]).map(([key, [name]]) => [key, name]);
  const [methodLabel, method] = select("method", methods, draw);
  const [classLabel, which] = select("class", classes[state.image].map((k, rank) => [rank, page.classes[k]]), draw);
  const [layerLabel, layer] = select("layer", layers.map((name) => [name, name]), draw);
  layer.value = byId("look-body").dataset.layer || layers[layers.length - 1];
  if (byId("look-body").dataset.method) method.value = byId("look-body").dataset.method;
  const opacity = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.65, "aria-label": "how much of the map is shown",
    oninput: () => stage.style.setProperty("--over", opacity.value) });
  const stage = el("div"), words = el("p"), reading = el("p", { class: "number", id: "reading", "aria-live": "polite" });
  byId("look-body").replaceChildren(stage, el("div", { class: "controls" }, methodLabel, classLabel, layerLabel,
    el("label", {}, "over the image", opacity), words, reading));
  function draw() {
    Object.assign(byId("look-body").dataset, { method: method.value, layer: layer.value });
    const key = method.value === "gradcam" ? layer.value : method.value, ref = found[key], [h, w] = ref.values[2].slice(2);
    const raw = unscaled(ref, state.image * classes[state.image].length + +which.value, h * w), [ih, iw] = nodes[0].shape;
    const values = method.value === "gradcam" || method.value === "cam" ? raw.map((v) => Math.max(v, 0)) : raw;
    layerLabel.hidden = method.value !== "gradcam";
    const name = page.classes[classes[state.image][+which.value]];
    const under = big(new Float32Array(ih * iw), ih, iw, `where the network looks for ${name}`, (i, j) => {
      const y = Math.floor((i * h) / ih), x = Math.floor((j * w) / iw);
      under.show((y * ih) / h, (x * iw) / w, ih / h, iw / w);
      reading.textContent = `pixel ${i}, ${j}: ${METHODS[method.value][0]} of ${name} there: ${number(raw[y * w + x])}`;
    });
    const picture = new Image();
    picture.onload = () => under.canvas.getContext("2d").drawImage(picture, 0, 0);
    picture.src = image.source;
    const over = paint(el("canvas", { id: "heat", "data-rows": h, "data-columns": w }), values, h, w);
    over.style.pointerEvents = "none";
    under.canvas.after(over);
    stage.replaceChildren(under.box, scaleOf(values));
    stage.style.setProperty("--over", opacity.value);
    const coarse = h < ih ? ` It has ${h} × ${w} cells: each covers ${Math.round(ih / h)} × ${Math.round(iw / w)} pixels of the image, so it cannot say more than that.` : "";
    words.textContent = METHODS[method.value][1] + coarse + (method.value === "occlusion" ? ` The square is ${square} × ${square}.` : "") +
      (reason && method.value === "gradcam" ? ` There is no class activation map: ${reason}.` : "");
    reading.textContent = "Move over the image: the number of that place.";
  }
  draw();
}

// --- tables, roofline ---

function drawTable() {
  const heads = ["layer", "kind", "output", "MACs", "parameters", "bytes"], timed = page.measures.some((m) => m.key === "ms");
  if (timed) heads.push("ms");
  if (images.length) heads.push("mean", "std", "zeros", "dead channels");
  const rows = nodes.slice(1).map((node) => {
    const cells = [node.name, node.title, node.shape.join("×"), whole(node.macs), whole(node.params), whole(node.bytes)];
    if (timed) cells.push(node.ms ? number(node.ms) : "");
    const s = node.statistics;
    if (images.length) cells.push(number(s.mean), number(s.std), percent(s.zeros), ["relu", "hard-swish"].includes(node.kind) ? percent(s.dead) : "");
    return el("tr", {}, cells.map((cell, k) => el("td", { class: k > 2 ? "right" : null }, cell)));
  });
  byId("table").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, heads.map((head, k) => el("th", { class: k > 2 ? "right" : null }, head)))),
    el("tbody", {}, rows)));
}
function drawRoofline() {
  const { gflops, cache, memory, points } = page.roofline, [w, h, m] = [760, 420, 52];
  const colours = { depthwise: "--vermilion", pointwise: "--blue", standard: "--green", separable: "--purple", other: "--quiet" };
  const xs = points.map((p) => p.intensity), ys = points.map((p) => p.gflops);
  const [x0, x1] = [Math.min(...xs) / 2, Math.max(...xs, gflops / Math.min(cache, memory)) * 2];
  const [y0, y1] = [Math.min(...ys) / 2, Math.max(...ys, gflops) * 2];
  const x = (v) => m + (Math.log(v / x0) / Math.log(x1 / x0)) * (w - m - 12), y = (v) => h - m + 12 - (Math.log(v / y0) / Math.log(y1 / y0)) * (h - m - 12);
  const ticks = (a, b) => Array.from({ length: 9 }, (_, k) => 10 ** (k - 3)).filter((v) => v >= a && v <= b);
  const roof = (bandwidth, dash) => el("path", { class: "axis", style: "stroke:var(--quiet)", "stroke-dasharray": dash,
    d: `M${x(Math.max(x0, y0 / bandwidth))},${y(Math.max(x0 * bandwidth, y0))}L${x(gflops / bandwidth)},${y(gflops)}L${x(x1)},${y(gflops)}` });
  const fastest = Math.max(cache, memory), slowest = Math.min(cache, memory), name = (v) => `${v === cache ? "last cache" : "memory"} ${number(v)} GB/s`;
  const labels = [ // above the higher slope, below the lower one, above the roof
    el("text", { x: x(gflops / fastest) - 16, y: y(gflops) + 4, "text-anchor": "end" }, name(fastest)),
    el("text", { x: x((0.4 * gflops) / slowest) + 14, y: y(0.4 * gflops) + 12 }, name(slowest)),
    el("text", { x: x(x1) - 6, y: y(gflops) - 8, "text-anchor": "end" }, `matrix product ${number(gflops)} GFLOP/s`)];
  byId("roofline").replaceChildren(el("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": "roofline: GFLOP/s by FLOPs a byte" },
    el("line", { class: "axis", x1: m, x2: w, y1: h - m + 12, y2: h - m + 12 }), el("line", { class: "axis", x1: m, x2: m, y1: 0, y2: h - m + 12 }),
    ticks(x0, x1).map((v) => el("text", { x: x(v), y: h - 22, "text-anchor": "middle" }, String(v))),
    ticks(y0, y1).map((v) => el("text", { x: m - 6, y: y(v) + 4, "text-anchor": "end" }, String(v))),
    el("text", { x: w - 12, y: h - 4, "text-anchor": "end" }, "FLOPs for each byte"), el("text", { x: m + 6, y: 12 }, "GFLOP/s"),
    roof(cache, null), roof(memory, "5 4"), labels,
    points.map((p) => el("circle", { cx: x(p.intensity), cy: y(p.gflops), r: 6, tabindex: 0, style: `stroke-width:2;stroke:var(${colours[p.kind]});fill:${p.backward ? "transparent" : `var(${colours[p.kind]})`}` },
      el("title", {}, `${p.name}, ${p.kind}, ${p.backward ? "backward" : "forward"}: ${number(p.gflops)} GFLOP/s at ${number(p.intensity)} FLOPs a byte, ${number(p.ms)} ms`)))),
    el("p", { class: "quiet" }, Object.keys(colours).filter((kind) => points.some((p) => p.kind === kind)).map((kind) => el("span", { style: `color:var(${colours[kind]});margin-right:1rem` }, `● ${kind}`))));
}
function drawAll() {
  if (images.length) drawAnswer();
  drawFlow();
  if (images.length) { drawDetail(); drawLook(); }
}
try {
  await unpack();
  byId("measure").append(...page.measures.map((m) => el("option", { value: m.key }, m.label)));
  byId("measure").addEventListener("change", drawFlow);
  if (images.length) {
    state.node = Math.max(nodes.findIndex((node) => node.kind === "depthwise"), 1);
    state.channel = strongest(nodes[state.node])[0];
    state.pixel = peak(nodes[state.node], state.channel);
  }
  drawAll();
  drawTable();
  if (page.roofline) drawRoofline();
  document.body.dataset.ready = "yes";
} catch (error) {
  byId("failed").textContent = `This page could not be drawn: ${error}`;
  byId("failed").hidden = false;
  throw error;
}
})();
