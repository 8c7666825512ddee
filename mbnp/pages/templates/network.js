"use strict";
// The page of a network. `page` is what Python knows (pages/network.py, pages/explain.py); the numbers of feature maps and
// weights are in one compressed text beside it. Below: numbers, pictures, the flow, one layer, where it looks, tables.
(async () => {
const page = JSON.parse(document.getElementById("data").textContent);
const nodes = page.nodes.map((node, index) => ({ ...node, index })), images = page.images;
const state = { image: 0, node: 0, channel: 0, pixel: [0, 0], held: false }; // held: the mouse does not move the pixel

// --- numbers ---

function el(tag, settings = {}, ...children) {
  const made = ["svg", "path", "rect", "line", "circle", "text"].includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
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
    const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? (fraction ? NaN : Infinity) : (1 + fraction / 1024) * 2 ** (exponent - 15);
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
  const key = `${node.index}/${at}/${state.image}`;
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
function rangeOf(values, signs = extent(values)[0] < 0) {
  const [low, high] = extent(values), most = Math.max(-low, high);
  return signs ? [-most, most] : [0, high];
}
const rangeFor = (node, values) => rangeOf(values, node.statistics.low < 0); // alike for all maps of a layer
function colour(v, [low, high]) {
  const t = high > low ? (v - low) / (high - low) : 0;
  if (!Number.isFinite(v) || !Number.isFinite(t)) return [255, 0, 255];
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
// Where a map is one number, its colour is by the largest of the layer's.
const thumbnail = (node, at) => paint(el("canvas"), map(node, at), ...hw(node),
  rangeFor(node, hw(node)[0] * hw(node)[1] === 1 ? node.channels.map((_, c) => map(node, c)[0]) : map(node, at)));
function scaleOf(ends) {
  const steps = Float32Array.from({ length: 48 }, (_, i) => ends[0] + ((ends[1] - ends[0]) * i) / 47);
  return el("div", { class: "scale" }, number(ends[0]), paint(el("canvas"), steps, 1, 48, ends), number(ends[1]));
}
// A large feature map with a frame on it. onpixel makes it answer to mouse, finger and arrow keys.
function big(values, h, w, label, onpixel = null, range = rangeOf(values)) {
  const frame = el("div", { class: "at", hidden: true }), canvas = paint(el("canvas"), values, h, w, range);
  const box = el("div", { class: "big" + (h * w === 1 ? " small" : "") }, canvas, frame);
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
    canvas.addEventListener("pointermove", (event) => { if (!state.held || event.buttons) point(event); });
    canvas.addEventListener("pointerdown", (event) => {
      const before = String(pixel);
      point(event);
      state.held = !(state.held && before === String(pixel));
    });
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
    "button", { "aria-pressed": n === state.image, onclick: () => { state.image = n; keepFocus(drawAll); } },
    el("figure", {}, el("img", { src: image.source, alt: image.name }), el("figcaption", {}, image.name)))));
  const top = images[state.image].top, [first, second] = top, name = (k) => page.classes[k.class];
  byId("classes").replaceChildren(bars(top.slice(0, 5).map((k) => [name(k), k.probability, `${percent(k.probability)}, logit ${number(k.logit)}`])),
    el("p", { class: "quiet" }, "A logit is a score that the last layer gives; softmax makes probabilities of them: " +
      `${name(first)} is e^(${number(first.logit)} ${signed(-second.logit)}) = ${number(Math.exp(first.logit - second.logit))} times as probable as ${name(second)}.`));
}
const sizes = (key, v) => (key === "ms" ? number(v) + " ms" : v >= 1e6 ? number(v / 1e6) + " M" : v >= 1e3 ? number(v / 1e3) + " k" : String(v));
function drawFlow() {
  const { key, note } = page.measures.find((m) => m.key === byId("measure").value) ?? page.measures[0];
  const most = Math.max(...nodes.map((node) => node[key] ?? 0)) || 1;
  byId("measure-note").textContent = note;
  byId("flow").replaceChildren(...nodes.map((node, i) => {
    const open = images.length ? () => choose(i, strongest(node)[0]) : null, value = node[key] ?? 0;
    const column = el("div", { class: `layer kind-${node.kind}` + (open && i === state.node ? " chosen" : "") },
      el("div", { class: "head", title: `${node.name}: ${node.title}`, ...(open ? { onclick: open } : {}) },
        el("b", {}, node.name.split(".").map((part, k) => (k ? [".", el("wbr"), part] : part))), el("span", {}, node.title),
        el("span", { class: "quiet" }, node.shape.join("×"))),
      el("div", { class: "cost", title: `${node.name}: ${sizes(key, value)}` }, value ? el("span", {}, sizes(key, value)) : "",
        el("i", { style: `height:${(54 * value) / most}px` })));
    if (open) column.append(el("div", { class: "maps" }, strongest(node).slice(0, 4).map((at) => mapButton(i, at, () => choose(i, at)))));
    return column;
  }));
}
function mapButton(i, at, onclick) {
  const pressed = i === state.node && at === state.channel, name = `${nodes[i].name}, channel ${nodes[i].channels[at]}`;
  return el("button", { class: "map", "aria-pressed": pressed, "data-node": i, "data-at": at, "aria-label": name, title: name, tabindex: pressed ? 0 : -1,
    onclick }, thumbnail(nodes[i], at));
}
// In a group of buttons only the chosen one is a stop of the tab key; arrow keys go from one to the next.
function roving(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], here = event.target.closest(".map");
  if (!step || !here) return;
  event.preventDefault();
  const sideways = event.currentTarget.id === "flow" && /Left|Right/.test(event.key);
  const all = sideways ? [...event.currentTarget.children].map((c) => c.querySelector(".map")) : [...here.parentElement.children];
  const next = all[all.indexOf(sideways ? here.parentElement.firstElementChild : here) + step];
  if (!next) return;
  next.click();
  event.currentTarget.querySelector(`[data-node="${next.dataset.node}"][data-at="${next.dataset.at}"]`)?.focus();
}
const strongest = (node) => node.channels.map((_, at) => at).sort((a, b) => strength(node, b) - strength(node, a));
const strengths = new Map();
function strength(node, at) {
  const key = `${node.index}/${at}/${state.image}`;
  if (!strengths.has(key)) strengths.set(key, mean(map(node, at).map(Math.abs)));
  return strengths.get(key);
}
function peak(node, at) { // the pixel whose number is largest: where there is most to see
  const values = map(node, at).map(Math.abs), k = values.indexOf(extent(values)[1]), w = hw(node)[1];
  return [Math.floor(Math.max(k, 0) / w), Math.max(k, 0) % w];
}
function choose(i, at, pixel = null) {
  Object.assign(state, { node: i, channel: at, pixel: pixel ?? peak(nodes[i], at), held: pixel !== null && state.held });
  [...byId("flow").children].forEach((column, k) => column.classList.toggle("chosen", k === i));
  byId("flow").children[i].scrollIntoView({ block: "nearest", inline: "nearest" });
  for (const button of byId("flow").querySelectorAll(".map")) {
    const pressed = +button.dataset.node === i && +button.dataset.at === at;
    button.setAttribute("aria-pressed", pressed);
    button.tabIndex = pressed ? 0 : -1;
  }
  if (!byId("flow").querySelector(".map[tabindex='0']")) byId("flow").children[i].querySelector(".map").tabIndex = 0;
  keepFocus(drawDetail);
}
// Redraw, and give the focus to what stands where it was.
function keepFocus(draw) {
  const key = (element) => element?.id || element?.getAttribute?.("aria-label") || element?.textContent;
  const before = document.activeElement, wanted = key(before), section = before?.closest("section")?.id;
  draw();
  if (section && !before.isConnected) [...byId(section).querySelectorAll("button, canvas, select, input")].find((e) => key(e) === wanted)?.focus();
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
      return el("td", { class: "number", style: `background:rgb(${r},${g},${b});color:${0.3 * r + 0.59 * g + 0.11 * b > 127 ? "#000" : "#fff"}` }, number(v));
    })));
  }
  return figure(el("table", { class: "grid" }, rows), caption);
}
const products = (seen, kernel, width) => [grid(seen, width, "input"), el("span", {}, "×"), grid(kernel, width, "kernel"), el("span", {}, "="),
  grid(seen.map((v, k) => v * kernel[k]), width, "products")];
const output = (node, at) => (i, j) => map(node, at)[i * hw(node)[1] + j];
// A picture of a map that a node reads, with what stands below it; a click goes there.
function inputOf(before, c, words) {
  const [h, w] = hw(before), values = map(before, c), picture = big(values, h, w, `${before.name}, channel ${before.channels[c]}`, null, rangeFor(before, values));
  picture.canvas.addEventListener("click", () => choose(before.index, c));
  return { values, h, w, show: picture.show, part: figure(picture.box, `${words} ${before.name}, channel ${before.channels[c]}`, scaleOf(rangeFor(before, values))) };
}
const only = (node, at, words = "its input:") => inputOf(source(node), place(source(node), node.channels[at]), words);

function depthwiseView(node, at) {
  const input = only(node, at, "its one input:"), size = node.kernel[0] * node.kernel[1], count = node.channels.length;
  const kernel = Array.from({ length: size }, (_, k) => array(node.weight)[k * count + at]), bias = node.bias ? node.bias[at] : 0;
  const grids = el("div", { class: "grids" }), [oh, ow] = hw(node);
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
  return [[input.part, el("div", { class: "wide" }, grids, slide)], (i, j) => {
    const frame = taps(node, i, j), seen = patch(input.values, input.h, input.w, frame);
    input.show(...frame);
    grids.replaceChildren(...products(seen, kernel, node.kernel[1]));
    return `${added(seen.map((v, k) => [kernel[k], v]))}${bias ? " " + signed(bias) : ""} = ${number(output(node, at)(i, j))}`;
  }];
}

// Standard and pointwise convolutions and linear layers: a sum over input maps, the largest contributions first.
function sumView(node, at) {
  const before = source(node), [h, w] = hw(before), weight = array(node.weight), outputs = node.channels.length;
  const inputs = before.channels.length, [kh, kw] = node.kernel ?? [1, 1], bias = node.bias ? node.bias[at] : 0, wide = kh * kw > 1;
  const kernel = (c) => Array.from({ length: kh * kw }, (_, k) => weight[(k * inputs + c) * outputs + at]);
  const worth = before.channels.map((_, c) => kernel(c).reduce((a, k) => a + Math.abs(k), 0) * strength(before, c));
  const order = worth.map((_, c) => c).sort((a, b) => worth[b] - worth[a]), shown = order.slice(0, 10);
  const largest = inputOf(before, order[0], "the input that counts most for this map:"), rows = el("div", { class: "terms" }), grids = el("div", { class: "grids" });
  const thumbs = new Map(shown.map((c) => [c, el("button", { class: "map", title: "go to this map", "aria-label": `go to channel ${before.channels[c]}`,
    onclick: () => choose(before.index, c) }, wide ? kernelPicture(kernel(c), kh, kw) : thumbnail(before, c))]));
  return [[h * w > 1 ? largest.part : "", el("div", { class: "wide" }, grids, rows, el("p", { class: "quiet" }, "The order is by what an input adds over the whole map."))], (i, j) => {
    const frame = taps(node, i, j), total = output(node, at)(i, j), seen = (c) => patch(map(before, c), h, w, frame);
    largest.show(...frame);
    if (wide) grids.replaceChildren(...products(seen(order[0]), kernel(order[0]), kw));
    const values = order.map((c) => [c, seen(c).reduce((a, v, k) => a + v * kernel(c)[k], 0)]);
    const top = values.slice(0, shown.length), others = values.slice(shown.length).reduce((a, [, v]) => a + v, 0);
    const absent = total - bias - others - top.reduce((a, [, v]) => a + v, 0), left = before.count - before.channels.length;
    const lines = top.map(([c, v]) => [thumbs.get(c), `channel ${before.channels[c]}`, wide ? `its kernel · ${kh}×${kw} pixels` : `${number(kernel(c)[0])} × ${number(seen(c)[0])}`, v]);
    if (values.length > shown.length) lines.push([el("span"), `${values.length - shown.length} more`, "inputs, together", others]);
    if (left) lines.push([el("span"), `${left} others`, "not in this page, together", absent]);
    if (bias) lines.push([el("span"), "bias", "", bias]);
    lines.push([el("span"), "sum", "", total]);
    const most = Math.max(...lines.map((line) => Math.abs(line[3])), 1e-30);
    rows.replaceChildren(...lines.flatMap(([picture, name, how, value]) => [picture, el("span", { class: name === "sum" ? "total" : null }, name),
      el("span", { class: "quiet number" }, how), el("span", { class: "bar" + (value < 0 ? " less" : ""), style: `width:${(100 * Math.abs(value)) / most}%` }),
      el("span", { class: "number" + (name === "sum" ? " total" : "") }, number(value))]));
    const first = [...values].sort((x, y) => Math.abs(y[1]) - Math.abs(x[1])).slice(0, 4).map(([c, v]) => (wide ? [v] : [kernel(c)[0], seen(c)[0]]));
    return `${added(first)}${before.count > 4 ? ` + … (${before.count} inputs)` : ""}${bias ? " " + signed(bias) : ""} = ${number(total)}`;
  }];
}
const kernelPicture = (values, kh, kw) => {
  const most = Math.max(...values.map(Math.abs)) || 1;
  return paint(el("canvas", { title: values.map(number).join("  ") }), values, kh, kw, [-most, most]);
};

// A function of one number, drawn over the histogram of what goes in.
function curve(values, f, { cut = () => false, include, marks = [], label }) {
  const [w, h, m] = [360, 240, 58], finite = values.filter(Number.isFinite);
  let [low, high] = extent([...finite, ...include]);
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
    marks.map((v) => el("line", { class: "mark", x1: x(v), x2: x(v), y1: 12, y2: h - 24 })),
    el("path", { class: "curve", d: "M" + steps.map((v, k) => `${x(v).toFixed(1)},${y(ys[k]).toFixed(1)}`).join("L") }), dot,
    el("text", { x: m, y: h - 6 }, number(low)), el("text", { x: w - 8, y: h - 6, "text-anchor": "end" }, number(high)),
    el("text", { x: 0, y: 14 }, number(most)), el("text", { x: 0, y: h - 28 }, number(least)));
  return [svg, (v) => { dot.setAttribute("cx", x(v)); dot.setAttribute("cy", y(f(v))); }];
}
function curveView(node, at, f, options, formula, words) {
  const input = only(node, at), [svg, show] = curve(input.values, f, options);
  return [[input.part, figure(svg, words(input.values))], (i, j) => {
    const v = input.values[i * input.w + j];
    show(v);
    input.show(i, j, 1, 1);
    return formula(v, output(node, at)(i, j));
  }];
}
function batchnormView(node, at) {
  const [gamma, beta, mu, variance] = ["gamma", "beta", "mean", "variance"].map((name) => node[name][at]);
  const deviation = Math.sqrt(variance + node.eps), scale = gamma / deviation, shift = beta - mu * scale, marks = [mu - deviation, mu + deviation];
  return curveView(node, at, (v) => scale * v + shift, { marks, include: marks, label: "the line of BatchNorm" },
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
  return curveView(node, at, f, { cut, include: [0], label: node.title }, (v, y) => `${text(number(v))} = ${number(y)}`, (values) => [
    `${percent(values.filter((v) => cut(v)).length / values.length)} of the pixels are cut off (vermilion): there the gradient is 0.`]);
}
// The linear layer right after an average, or null: then each pixel's share of a logit is known.
function linearAfter(node) {
  const readers = nodes.filter((other) => other.inputs.includes(node.index));
  if (readers.length !== 1) return null;
  return readers[0].kind === "linear" ? readers[0] : ["flatten", "dropout"].includes(readers[0].kind) ? linearAfter(readers[0]) : null;
}
function averageView(node, at) {
  const input = only(node, at), last = linearAfter(node), parts = [input.part];
  if (last && hw(node)[0] * hw(node)[1] === 1 && place(source(last), node.channels[at]) >= 0) {
    const average = map(node, at)[0], count = last.channels.length, weight = array(last.weight), c = place(source(last), node.channels[at]);
    const rows = images[state.image].top.slice(0, 5).map((k) => [page.classes[k.class], weight[c * count + place(last, k.class)]])
      .map(([name, factor]) => [name, factor * average, `${number(factor)} × ${number(average)} = ${number(factor * average)}`]);
    parts.push(el("div", { class: "wide" }, el("h3", {}, "What this channel adds to the logits"), bars(rows)));
  }
  return [parts, (i, j) => {
    const frame = node.kernel ? taps(node, i, j) : [0, 0, input.h, input.w];
    const seen = patch(input.values, input.h, input.w, frame, node.count_padding === false ? null : 0).filter((v) => v !== null);
    input.show(...frame);
    return `(${added(seen.slice(0, 9).map((v) => [v]))}${seen.length > 9 ? " + …" : ""})/${seen.length} = ${number(output(node, at)(i, j))}`;
  }];
}
function maxView(node, at) {
  const input = only(node, at), grids = el("div", { class: "grids" });
  return [[input.part, grids], (i, j) => {
    const frame = taps(node, i, j), seen = patch(input.values, input.h, input.w, frame, -Infinity);
    input.show(...frame);
    grids.replaceChildren(grid(seen, frame[3], "the window"));
    return `max(${seen.map(number).join(", ")}) = ${number(output(node, at)(i, j))}`;
  }];
}
function joinView(node, at) {
  const inputs = node.inputs.map((k) => inputOf(nodes[k], place(nodes[k], node.channels[at]), "")), sign = node.kind === "sum" ? "+" : "×";
  return [[inputs[0].part, el("span", {}, sign), inputs[1].part], (i, j) => {
    const [a, b] = inputs.map(({ values, h, w, show }) => {
      const [y, x] = h * w === 1 ? [0, 0] : [i, j];
      show(y, x, 1, 1);
      return values[y * w + x];
    });
    return `${number(a)} ${node.kind === "sum" ? signed(b) : `× ${number(b)}`} = ${number(output(node, at)(i, j))}`;
  }];
}
const plainView = (node, at) => [[], (i, j) => number(output(node, at)(i, j))];
const average = [averageView, "The mean of each map: where something is does not matter any more, only how much of it there is."];
const activation = [activationView, "Each number by itself: what is below zero is cut off. Without this the layers together would be no more than one sum."];
const VIEWS = {
  depthwise: [depthwiseView, "Each output map comes from one input map, the one of the same channel, by a kernel of its own: pixels mix, channels do not."],
  pointwise: [sumView, "Each output pixel is a weighted sum of the same pixel of all input maps: channels mix, pixels do not. An output's number says nothing about the input of that number."],
  conv: [sumView, "Each output map is a sum over all input maps, each with a kernel of its own: pixels and channels mix."],
  linear: [sumView, "Each logit is a weighted sum of all the numbers before it."],
  batchnorm: [batchnormView, "Each channel by itself: a line that gives it the mean and the spread that the network learned for it."],
  relu: activation, "hard-swish": [activationView, activation[1].replace("below zero is cut off", "far below zero is cut off")], "hard-sigmoid": [activationView, "Each number by itself, to a factor from 0 to 1."],
  "average-pool": average, "global-average-pool": average, squeeze: average,
  "max-pool": [maxView, "The largest number of each window."],
  sum: [joinView, "The two branches, added: what went in stays, and the branch adds a correction to it."],
  gate: [joinView, "Each map times one factor, the same for all its pixels, which the layers of the gate made of the averages of all maps."],
  image: [plainView, "What goes in: the image, less the mean colour of the training images, divided by their standard deviation."],
  flatten: [plainView, "The same numbers, in a row."], dropout: [plainView, "Nothing: dropout works only in training."],
  pad: [plainView, "Zeros around the map."], subsample: [plainView, "The pixels that the stride keeps, and zeros for new channels."],
};
let setPixel = null;
// The place of a node `by` steps on: the same channel, or where channels mix the one that has most to do with it.
function follow(node, at, next) {
  const mixes = ["conv", "pointwise", "linear"];
  const largest = (count, of) => Array.from({ length: count }, (_, k) => k).reduce((a, k) => (of(k) > of(a) ? k : a), 0);
  const weight = (layer, c, d) => {
    const per = source(layer).channels.length * layer.channels.length, all = array(layer.weight);
    return Array.from({ length: all.length / per }, (_, k) => Math.abs(all[k * per + c * layer.channels.length + d])).reduce((a, v) => a + v);
  };
  if (mixes.includes(next.kind) && source(next) === node) return largest(next.channels.length, (d) => weight(next, at, d));
  if (mixes.includes(node.kind) && source(node) === next) return largest(next.channels.length, (c) => weight(node, c, at) * strength(next, c));
  return Math.max(place(next, node.channels[at]), 0);
}
function drawDetail() {
  const node = nodes[state.node], at = state.channel, [h, w] = hw(node), values = map(node, at), last = state.node === nodes.length - 1;
  const formula = el("p", { class: "formula number", id: "formula", "aria-live": "polite" }), [view, words] = VIEWS[node.kind] ?? [plainView, ""];
  const [parts, update] = view(node, at), label = (c) => (last ? page.classes[node.channels[c]] : `channel ${node.channels[c]}`);
  const mine = big(values, h, w, "this feature map; arrow keys move the pixel", (i, j) => setPixel(i, j), rangeFor(node, values));
  setPixel = (i, j) => {
    state.pixel = [i, j];
    mine.show(i, j, 1, 1);
    formula.textContent = `${node.name}[${node.shape.length === 3 ? `${i}, ${j}, ` : ""}${node.channels[at]}] = ${update(i, j)}`;
  };
  const strip = el("div", { class: "strip", role: "group", "aria-label": "channels of this layer", onkeydown: roving }, node.channels.map((_, c) =>
    mapButton(state.node, c, () => choose(state.node, c, state.pixel))));
  const held = (node.channels.length < node.count ? `${node.channels.length} of ` : "") + `its ${node.count} channels`;
  const silent = node.channels.filter((_, c) => strength(node, c) === 0), steps = node.stride?.some((n) => n > 1) ? `stride ${node.stride.join(" × ")}, ` : "";
  const facts = [`${node.shape.join(" × ")}, ${steps}${whole(node.macs)} MACs, ${whole(node.params)} parameters. Here are ${held}`,
    silent.length ? `; zero everywhere for this image: ${silent.slice(0, 12).join(", ")}${silent.length > 12 ? ` and ${silent.length - 12} more` : ""}` : "", "."];
  const step = (by, text) => el("button", { class: "tool", disabled: !nodes[state.node + by], onclick: () => {
    const next = nodes[state.node + by], [nh, nw] = hw(next), [i, j] = state.pixel;
    choose(state.node + by, follow(node, at, next), [Math.floor((i * nh) / h), Math.floor((j * nw) / w)]);
  } }, text);
  const alone = h * w === 1 ? bars(strongest(node).slice(0, 12).map((c) => [label(c), map(node, c)[0], number(map(node, c)[0])])) : null;
  byId("detail").replaceChildren(
    el("h2", {}, `${node.name}: ${node.title}`), el("p", {}, words), el("p", { class: "quiet" }, facts), strip,
    el("p", {}, step(-1, "← layer before"), " ", step(1, "next layer →")), formula,
    el("div", { class: "stage" }, figure(alone ? el("div", { class: "alone" }, alone) : mine.box,
      alone ? `${label(at)} is chosen: ${number(values[0])}` : `${label(at)}. Point at it, or tap: its numbers are above. A click holds the pixel, another lets go.`,
      alone ? "" : scaleOf(rangeFor(node, values))), parts),
    el("p", { class: "quiet" }, "layer[row, column, channel]. Numbers have three digits, sums are of the unrounded ones."));
  strip.scrollTop = strip.children[at].offsetTop - strip.offsetTop - 40;
  setPixel(...state.pixel);
}

// --- where it looks ---

const METHODS = {
  cam: ["class activation map", "Exact: the mean of these contributions, plus the bias, is the logit. It does not prove that the network knows the object: what it adds may lie beside it, and a cell depends on more of the image than it covers."],
  gradcam: ["Grad-CAM", "Each map of the layer times the mean of its gradient, added up; below zero is not shown. It does not prove where the class is: in early layers one factor for a whole map cannot tell its pixels apart, and borders light up because of padding."],
  saliency: ["saliency", "How much a small change of this pixel would change the logit. It does not prove that the pixel was used: edges are bright in networks that have learned nothing, too."],
  occlusion: ["occlusion", "How much the logit falls when a grey square hides this place. It does not prove what matters alone: parts can stand in for each other, and an image with a grey square is unlike any that was learned."],
};
function drawLook() {
  const { classes, layers, gradcam, maps: found, square, no_cam: reason } = page.look, image = images[state.image], kept = byId("look-body").dataset;
  const select = (label, options, value) => {
    const chosen = el("select", { "aria-label": label, onchange: draw }, options.map(([key, text]) => el("option", { value: key }, text)));
    chosen.value = value;
    return [el("label", {}, label, chosen), chosen];
  };
  const methods = Object.entries(METHODS).filter(([key]) => (key === "gradcam" ? layers.length : found[key])).map(([key, [name]]) => [key, name]);
  const [methodLabel, method] = select("method", methods, kept.method || methods[0][0]);
  const [classLabel, which] = select("class", classes[state.image].map((k, rank) => [rank, page.classes[k]]), 0);
  const [layerLabel, layer] = select("layer", layers.map((name) => [name, name]), kept.layer || layers[layers.length - 1]);
  const opacity = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.65, "aria-label": "how much of the map is shown",
    oninput: () => stage.style.setProperty("--over", opacity.value) });
  const stage = el("div"), words = el("p"), reading = el("p", { class: "number", id: "reading", "aria-live": "polite" });
  byId("look-body").replaceChildren(stage, el("div", { class: "controls" }, methodLabel, classLabel, layerLabel,
    el("label", {}, "over the image", opacity), words, reading));
  const of = (ref) => {
    const [h, w] = ref.values[2].slice(2);
    return [unscaled(ref, state.image * classes[state.image].length + +which.value, h * w), h, w];
  };
  function draw() {
    Object.assign(kept, { method: method.value, layer: layer.value });
    const [raw, h, w] = of(method.value === "gradcam" ? gradcam[layer.value] : found[method.value]), [ih, iw] = nodes[0].shape;
    const values = ["gradcam", "cam"].includes(method.value) ? raw.map((v) => Math.max(v, 0)) : raw;
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
    under.canvas.after(over);
    stage.replaceChildren(under.box, scaleOf(rangeOf(values)));
    stage.style.setProperty("--over", opacity.value);
    const coarse = h < ih ? ` It has ${h} × ${w} cells: each covers about ${Math.round(ih / h)} × ${Math.round(iw / w)} pixels of the image` +
      (method.value === "occlusion" ? `, and the square is ${square} × ${square}.` : ", since strides have made it smaller; finer it cannot be.") : "";
    const cam = method.value === "gradcam" && found.cam ? of(found.cam) : null;
    const same = cam && cam[1] === h && cam[0].every((v, k) => Math.abs(Math.max(v, 0) - values[k] * h * w) <= 2e-3 * extent(cam[0])[1]);
    words.textContent = METHODS[method.value][1] + coarse + (same ? " In this layer it is the class activation map divided by the number of cells, and no second witness." : "") +
      (reason && method.value === "gradcam" ? ` There is no class activation map: ${reason}.` : "");
    reading.textContent = "Point at the image, or tap: the number of that place.";
  }
  draw();
}

// --- tables ---

function drawTable() {
  const keys = ["macs", "params", "bytes", ...(page.measures.some((m) => m.key === "ms") ? ["ms"] : [])];
  const heads = { macs: "MACs", params: "parameters", bytes: "bytes", ms: "ms" }, text = (key, v) => (key === "ms" ? (v ? number(v) : "") : whole(v));
  const sheet = (head, rows) => el("table", {}, el("thead", {}, el("tr", {}, head.map((cell, k) => el("th", { class: k > (head[2] === "output" ? 2 : 0) ? "right" : null }, cell)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, k) => el("td", { class: k > (head[2] === "output" ? 2 : 0) ? "right" : null }, cell))))));
  const kinds = [...new Set(nodes.slice(1).map((node) => node.title))], total = (key, of) => of.reduce((a, node) => a + (node[key] ?? 0), 0);
  const shares = kinds.map((kind) => [kind, ...keys.map((key) => total(key, nodes.filter((node) => node.title === kind)) / (total(key, nodes.slice(1)) || 1))])
    .sort((a, b) => b[1] - a[1]).map(([kind, ...parts]) => [kind, ...parts.map(percent)]);
  const rows = nodes.slice(1).map((node, k) => {
    const s = node.statistics, name = images.length ? el("button", { class: "link", onclick: () => { choose(k + 1, strongest(node)[0]); byId("detail").scrollIntoView(); } }, node.name) : node.name;
    return [name, node.title, node.shape.join("×"), ...keys.map((key) => text(key, node[key])), ...(images.length ? [number(s.mean), number(s.std), percent(s.zeros),
      ["relu", "hard-swish"].includes(node.kind) ? percent(s.dead) : ""] : [])];
  });
  const more = images.length ? ["mean", "std", "zeros", "dead channels"] : [];
  byId("table").replaceChildren(sheet(["kind", ...keys.map((key) => heads[key])], shares), el("p", { class: "quiet" }, images.length ?
    "Shares of each kind, then every layer. Time is not in proportion to work: small layers take mostly the time of a call. Mean, std and zeros are of the layer's output; a dead channel is zero everywhere on the images of this page." :
    "Shares of each kind, then every layer."), sheet(["layer", "kind", "output", ...keys.map((key) => heads[key]), ...more], rows));
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
  byId("flow").addEventListener("keydown", roving);
  if (images.length) {
    state.node = Math.max(nodes.findIndex((node) => node.kind === "depthwise"), 1);
    state.channel = strongest(nodes[state.node])[0];
    state.pixel = peak(nodes[state.node], state.channel);
  }
  drawAll();
  drawTable();
  document.body.dataset.ready = "yes";
} catch (error) {
  byId("failed").textContent = `This page could not be drawn: ${error}`;
  byId("failed").hidden = false;
  throw error;
}
})();
