"use strict";
// The network in the pipeline's exact arithmetic. Every function here gives the bits of its
// namesake in stages/core (network.py, exact.py, elementary.py): JavaScript's numbers are float64,
// Math.fround rounds one to float32, and IEEE 754 defines + - * / to the last bit.
//
// A network is {quantum, layers: [{W, b, quantum, saturation}]}: the quantum of its pixels, then
// of each hidden layer's activations, and where these saturate.

// 1.5 * 2**(p - 1), the middle of a binade, in the two formats.
const ANCHOR_FLOAT32 = 1.5 * 2 ** 23;
const ANCHOR_FLOAT64 = 1.5 * 2 ** 52;
const EXPONENTIAL_QUANTUM = 2 ** -48;

const STEPS_PER_UNIT = 256;
const LOWEST = -32;
const EXP_TABLE = expTable();

/** Round a float32 to the nearest multiple of `quantum`, ties to even. */
function roundFloat32(value, quantum) {
  const anchor = ANCHOR_FLOAT32 * quantum;
  return Math.fround(Math.fround(value + anchor) - anchor);
}

/** Round to the nearest multiple of `quantum`, ties to even (Math.round rounds ties up). */
function roundFloat64(value, quantum) {
  const anchor = ANCHOR_FLOAT64 * quantum;
  return value + anchor - anchor;
}

/** e**(-k / 256) for k = 0, 1, ...: Taylor's series at a 32nd of the exponent, squared 5 times. */
function expTable() {
  const table = new Float64Array(-LOWEST * STEPS_PER_UNIT + 1);
  for (let k = 0; k < table.length; k++) {
    const reduced = -k / (STEPS_PER_UNIT * 32);
    let series = 1;
    for (let n = 24; n > 0; n--) series = 1 + (series * reduced) / n;
    for (let i = 0; i < 5; i++) series *= series;
    table[k] = series;
  }
  return table;
}

/** e**x for x <= 0. Math.exp may differ in the last bits from one browser to the next. */
function exp(x) {
  const steps = Math.max(x, LOWEST) * -STEPS_PER_UNIT;
  const k = roundFloat64(steps, 1);
  const r = k - steps;
  let series = r * (0.5 / STEPS_PER_UNIT ** 2);
  series += 1 / STEPS_PER_UNIT;
  series *= r;
  series += 1;
  return series * EXP_TABLE[k];
}

/** a @ W for one sample; W is row-major, (inputs, outputs). No sum rounds, so none has an order. */
function product(a, W, outputs) {
  const sums = new Float64Array(outputs);
  for (let i = 0; i < a.length; i++) {
    const input = a[i];
    if (input === 0) continue;
    const row = i * outputs;
    for (let j = 0; j < outputs; j++) sums[j] += input * W[row + j];
  }
  return sums;
}

/** Return every layer's inputs, [x, a_1, ...], and the logits of one image of uint8 pixels. */
function forward(network, pixels) {
  const activations = [Float64Array.from(pixels, (pixel) => pixel * network.quantum)];
  for (const { W, b, quantum, saturation } of network.layers.slice(0, -1)) {
    const z = product(activations.at(-1), W, b.length);
    activations.push(z.map((sum, unit) => {
      const relu = Math.min(Math.max(Math.fround(sum + b[unit]), 0), saturation);
      return roundFloat32(relu, quantum);
    }));
  }
  const { W, b } = network.layers.at(-1);
  const logits = product(activations.at(-1), W, b.length).map((sum, unit) => sum + b[unit]);
  return { activations, logits };
}

/** Return the probabilities of the logits. */
function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = logits.map((z) => roundFloat64(exp(z - largest), EXPONENTIAL_QUANTUM));
  const total = exponentials.reduce((sum, exponential) => sum + exponential, 0);
  return exponentials.map((exponential) => exponential / total);
}

/** Return the most probable class, the lowest of a tie, all probabilities and the activations. */
function classify(network, pixels) {
  const { activations, logits } = forward(network, pixels);
  return {
    prediction: logits.indexOf(Math.max(...logits)),
    probabilities: softmax(logits),
    activations,
  };
}
