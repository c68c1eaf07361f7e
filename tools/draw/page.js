"use strict";
// The page itself: what is drawn, and what is shown of it.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SHAPE = DATA.shape;
const CLASSES = DATA.classes;
// The arrays are little-endian, as is every machine that a browser runs on.
const NETWORK = {
  quantum: DATA.quantum,
  layers: DATA.layers.map((layer) => ({
    ...layer,
    W: new Float32Array(bytes(layer.W).buffer),
    b: new Float32Array(bytes(layer.b).buffer),
  })),
};

/** Return what the network makes of an image of uint8 pixels; see `classify`. */
function recognise(pixels) {
  return classify(NETWORK, pixels);
}

// The paper has 20 x 20 pixels for each one of the network's.
const DETAIL = 20;
const PEN_RADIUS = 20;
const KEY_STEP = DETAIL;
const MOST_UNITS = 64;
const UNSURE = 0.9;
const [BLACK, WHITE, ORANGE, BLUE] = [[0, 0, 0], [255, 255, 255], [235, 110, 20], [35, 120, 230]];

const $ = (id) => document.getElementById(id);

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

/** Paint uint8 pixels on a canvas, each as opaque as it is high, in the color that `colorOf` gives. */
function paint(canvas, [height, width], pixels, colorOf) {
  // A canvas forgets its picture when its size is set.
  if (canvas.height !== height || canvas.width !== width) Object.assign(canvas, { height, width });
  const image = new ImageData(width, height);
  for (let i = 0; i < pixels.length; i++) {
    if (pixels[i] === 0) continue;
    const color = colorOf(i);
    for (let channel = 0; channel < 3; channel++) image.data[4 * i + channel] = color[channel];
    image.data[4 * i + 3] = pixels[i];
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Only a certainty is 100%. */
function percent(probability) {
  const rounded = (100 * probability).toFixed(1);
  return rounded === "100.0" && probability < 1 ? ">99.9%" : `${rounded}%`;
}

// ---- What is drawn: a list of what was done, so that undo takes the last away.

/** Each is {points} of a stroke, {example}, which replaces all before it, or {} for a cleared page. */
const actions = [];
let ink = inkOf([]);

function inkOf(strokes) {
  return drawnInk(DETAIL * SHAPE[0], DETAIL * SHAPE[1], strokes, PEN_RADIUS);
}

/** Return what the actions come to: the strokes on the paper, or else an example or nothing. */
function drawn() {
  const start = actions.findLastIndex((action) => !action.points);
  const strokes = actions.slice(start + 1).map((action) => action.points);
  return { strokes, example: strokes.length ? undefined : actions[start]?.example };
}

function act(action) {
  actions.push(action);
  redraw();
}

function undo() {
  if (actions.length) actions.pop();
  redraw();
}

function clear() {
  const { strokes, example } = drawn();
  if (strokes.length || example) act({});
}

/** Draw the paper anew and show the result, to a screen reader, too. */
function redraw() {
  ink = inkOf(drawn().strokes);
  show();
  announce();
}

function beginStroke(point) {
  act({ points: [point] });
}

function continueStroke(point) {
  const { points } = actions.at(-1);
  ink.line(points.at(-1), point, PEN_RADIUS);
  points.push(point);
  showSoon();
}

// ---- What is shown.

let result = null;
let waiting = false;

/** Show once before the screen's next picture, however often a fast pen reports. */
function showSoon() {
  if (!waiting) requestAnimationFrame(() => { waiting = false; show(); });
  waiting = true;
}

function show() {
  const { strokes, example } = drawn();
  const pixels = example
    ? example.pixels : centred(withoutThickLines(ink, strokes, PEN_RADIUS), SHAPE);
  result = pixels.some((pixel) => pixel) ? recognise(pixels) : null;

  if (example) paint($("paper"), SHAPE, pixels, () => BLACK);
  else paint($("paper"), [ink.height, ink.width], ink.pixels, () => BLACK);
  $("paper").classList.toggle("coarse", Boolean(example));
  paint($("seen"), SHAPE, pixels, () => WHITE);
  $("invitation").hidden = strokes.length > 0 || Boolean(example);
  $("undo").disabled = actions.length === 0;
  $("clear").disabled = strokes.length === 0 && !example;
  showAnswer(example);
  showBars();
  if ($("units").closest("details").open) showReaction();
}

function showAnswer(example) {
  $("digit").textContent = result ? CLASSES[result.prediction] : "";
  const [first, second] = ranked();
  const parts = [];
  if (result) parts.push(percent(result.probabilities[first]));
  if (result && result.probabilities[first] < UNSURE) parts.push(`or ${CLASSES[second]}?`);
  if (example) parts.push(`labelled ${CLASSES[example.label]}`);
  $("doubt").textContent = parts.join(", ");
}

/** Return the classes, the most probable first. */
function ranked() {
  const order = [...CLASSES.keys()];
  return result ? order.sort((a, b) => result.probabilities[b] - result.probabilities[a]) : order;
}

function announce() {
  $("status").textContent = result
    ? `${$("digit").textContent}: ${$("doubt").textContent}` : "The paper is blank.";
}

const bars = CLASSES.map((name) => {
  const fill = element("div", { className: "fill" });
  const share = element("span", { className: "percent" });
  const track = element("div", { className: "track" }, fill);
  const row = element("li", {}, element("span", { textContent: name }), track, share);
  $("bars").append(row);
  return { row, fill, share };
});

function showBars() {
  bars.forEach(({ row, fill, share }, i) => {
    const probability = result ? result.probabilities[i] : 0;
    row.className = result && result.prediction === i ? "best" : "";
    fill.style.width = `${100 * probability}%`;
    share.textContent = result ? percent(probability) : "";
  });
}

let units = [];

/** Draw the weights of the first units, each on its own scale, which ends at half its largest. */
function drawUnits() {
  const { W, b } = NETWORK.layers[0];
  const shown = Math.min(b.length, MOST_UNITS);
  if (shown < b.length) $("left-out").textContent = ` The first ${shown} of ${b.length} are shown.`;
  units = Array.from({ length: shown }, (_, unit) => {
    const weights = Array.from({ length: SHAPE[0] * SHAPE[1] }, (_, i) => W[i * b.length + unit]);
    const largest = Math.max(...weights.map(Math.abs));
    const canvas = element("canvas");
    const strengths = weights.map((weight) => Math.min((510 * Math.abs(weight)) / largest, 255));
    paint(canvas, SHAPE, strengths, (i) => (weights[i] > 0 ? ORANGE : BLUE));
    const fill = element("div", { className: "fill" });
    const tile = element("div", { className: "unit" }, canvas, fill);
    $("units").append(tile);
    return { tile, fill };
  });
}

function showReaction() {
  if (!units.length) drawUnits();
  const reaction = result ? result.activations[1] : new Float64Array(NETWORK.layers[0].b.length);
  const largest = Math.max(...reaction);
  units.forEach(({ tile, fill }, unit) => {
    fill.style.width = `${largest && (100 * reaction[unit]) / largest}%`;
    tile.classList.toggle("silent", result !== null && reaction[unit] === 0);
  });
  const active = reaction.filter((value) => value > 0).length;
  $("reaction").textContent = result ? `${active} of ${reaction.length} units react.` : "";
}

// ---- Mouse, pen and touch.

const paper = $("paper");
let pointer = null;

/** Return where on the paper an event happened, in whole pixels of it. */
function place(event) {
  const { left, top, width, height } = paper.getBoundingClientRect();
  return {
    x: Math.round(((event.clientX - left) * ink.width) / width),
    y: Math.round(((event.clientY - top) * ink.height) / height),
  };
}

paper.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return; // a second finger, or another button
  pointer = event.pointerId;
  paper.setPointerCapture(pointer);
  liftPen();
  beginStroke(place(event));
});

paper.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  // A fast pen reports more often than the browser passes events on.
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) continueStroke(place(each));
});

for (const end of ["pointerup", "pointercancel"]) {
  paper.addEventListener(end, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    show();
    announce();
  });
}

// ---- Keyboard.

const pen = { x: (DETAIL * SHAPE[1]) / 2, y: (DETAIL * SHAPE[0]) / 4, down: false };
const held = new Set();

function liftPen() {
  pen.down = false;
  showPen();
}

function showPen() {
  $("pen").hidden = !paper.matches(":focus-visible");
  $("pen").classList.toggle("down", pen.down);
  $("pen").style.left = `${(100 * pen.x) / ink.width}%`;
  $("pen").style.top = `${(100 * pen.y) / ink.height}%`;
}

function movePen() {
  const along = (less, more) => KEY_STEP * (held.has(more) - held.has(less));
  pen.x = Math.min(Math.max(pen.x + along("ArrowLeft", "ArrowRight"), 0), ink.width);
  pen.y = Math.min(Math.max(pen.y + along("ArrowUp", "ArrowDown"), 0), ink.height);
  if (pen.down) continueStroke({ x: pen.x, y: pen.y });
}

function usePen() {
  pen.down = !pen.down;
  if (pen.down) beginStroke({ x: pen.x, y: pen.y });
  else announce();
}

paper.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || pointer !== null) return;
  held.add(event.key);
  if (event.key.startsWith("Arrow")) movePen();
  else if (event.key === " " || event.key === "Enter") event.repeat || usePen();
  else if (event.key === "Backspace") { liftPen(); undo(); }
  else if (event.key === "Delete") { liftPen(); clear(); }
  else return;
  event.preventDefault();
  showPen();
});

paper.addEventListener("keyup", (event) => held.delete(event.key));
paper.addEventListener("focus", showPen);
paper.addEventListener("blur", () => { held.clear(); liftPen(); });

document.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if (pointer !== null) return;
  liftPen();
  undo();
});

// ---- Buttons and examples.

$("undo").addEventListener("click", () => { liftPen(); undo(); });
$("clear").addEventListener("click", () => { liftPen(); clear(); });

for (const kind of ["typical", "mistakes"]) {
  for (const { pixels, label, prediction } of DATA[kind]) {
    const example = { pixels: bytes(pixels), label };
    const canvas = element("canvas");
    paint(canvas, SHAPE, example.pixels, () => WHITE);
    const taken = label === prediction ? "" : `, taken for ${CLASSES[prediction]}`;
    const title = `${CLASSES[label]}${taken}`;
    const button = element("button", { type: "button", title, ariaLabel: title }, canvas);
    button.addEventListener("click", () => {
      liftPen();
      act({ example });
      $("seen").scrollIntoView({ block: "nearest" }); // on a phone the examples are far below
    });
    $(kind).append(button);
  }
}

$("units").closest("details").addEventListener("toggle", show);
show();
