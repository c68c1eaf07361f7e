"use strict";
// From the strokes of a pen to the image that the network sees. Strokes are drawn here and not by
// the browser: each browser smooths edges in its own way, and some add noise to what is read back.

// In 20ths of the digit's longer side; nine of ten digits of MNIST have thinner lines.
const THICKEST = 3.2;

/** An image of uint8 pixels, from 0, paper, to 255, ink. */
class Ink {
  constructor(height, width) {
    this.height = height;
    this.width = width;
    this.pixels = new Uint8Array(height * width);
  }

  /** Draw a line with round ends; a pixel has ink where the pen covers its middle. */
  line(from, to, radius) {
    const dx = to.x - from.x;
    const dy = to.y - from.y;
    const squaredLength = dx * dx + dy * dy;
    const reach = radius + 1;
    const left = Math.max(Math.floor(Math.min(from.x, to.x) - reach), 0);
    const right = Math.min(Math.ceil(Math.max(from.x, to.x) + reach), this.width);
    const top = Math.max(Math.floor(Math.min(from.y, to.y) - reach), 0);
    const bottom = Math.min(Math.ceil(Math.max(from.y, to.y) + reach), this.height);
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const x = column + 0.5 - from.x;
        const y = row + 0.5 - from.y;
        const along = squaredLength && Math.min(Math.max((x * dx + y * dy) / squaredLength, 0), 1);
        const offX = x - along * dx;
        const offY = y - along * dy;
        // Over the pixel at the pen's edge, coverage falls from 1 to 0.
        const coverage = radius + 0.5 - Math.sqrt(offX * offX + offY * offY);
        if (coverage <= 0) continue;
        const place = row * this.width + column;
        const value = Math.round(255 * Math.min(coverage, 1));
        if (value > this.pixels[place]) this.pixels[place] = value;
      }
    }
  }
}

/** Return the ink of strokes, lists of points {x, y}, as a pen draws them. */
function drawnInk(height, width, strokes, radius) {
  const ink = new Ink(height, width);
  for (const points of strokes) {
    points.forEach((point, i) => ink.line(points[Math.max(i - 1, 0)], point, radius));
  }
  return ink;
}

/**
 * Return the ink of strokes as drawn with a finer pen, if `ink` shows them so small that their lines
 * would come out thicker than MNIST's.
 */
function withoutThickLines(ink, strokes, radius) {
  const box = boundingBox(ink);
  const finer = box ? (THICKEST * Math.max(box.height, box.width)) / 40 : radius;
  return finer < radius ? drawnInk(ink.height, ink.width, strokes, finer) : ink;
}

/** Return the box of the pixels that are not 0: its first row and column and its size; or null. */
function boundingBox({ height, width, pixels }) {
  let top = height;
  let bottom = 0;
  let left = width;
  let right = 0;
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (pixels[row * width + column] === 0) continue;
      if (row < top) top = row;
      if (column < left) left = column;
      if (column >= right) right = column + 1;
      bottom = row + 1;
    }
  }
  return bottom ? { top, left, height: bottom - top, width: right - left } : null;
}

/** Return, for each new pixel along an axis, the first ink pixel that it covers and how far each. */
function overlaps(size, length, side) {
  return Array.from({ length: Math.ceil((side * size) / length) }, (_, i) => {
    const first = Math.floor((length * i) / side);
    const extents = [];
    for (let k = first; k < size && side * k < length * (i + 1); k++) {
      const end = Math.min(length * (i + 1), side * (k + 1));
      extents.push(end - Math.max(length * i, side * k));
    }
    return { first, extents };
  });
}

/**
 * Scale a digit to MNIST's size and put its centre of mass at the middle of the frame: `centred`
 * of tools/handwriting.py, whose text defines each step. All numbers are whole and below 2**53.
 *
 * Returns the frame's uint8 pixels; all are 0 where there is no ink.
 */
function centred(ink, [height, width]) {
  const frame = new Uint8Array(height * width);
  const box = boundingBox(ink);
  if (!box) return frame;
  const length = Math.max(box.height, box.width);
  const side = Math.floor((5 * Math.min(height, width)) / 7);

  const rows = overlaps(box.height, length, side);
  const columns = overlaps(box.width, length, side);
  let mass = 0;
  let momentDown = 0;
  let momentAcross = 0;
  const scaled = rows.map((down, i) => columns.map((across, j) => {
    let total = 0;
    for (let row = 0; row < down.extents.length; row++) {
      const start = (box.top + down.first + row) * ink.width + box.left + across.first;
      let sum = 0;
      for (let column = 0; column < across.extents.length; column++) {
        sum += ink.pixels[start + column] * across.extents[column];
      }
      total += sum * down.extents[row];
    }
    const value = Math.floor((2 * total + length ** 2) / (2 * length ** 2));
    mass += value;
    momentDown += value * (2 * i + 1);
    momentAcross += value * (2 * j + 1);
    return value;
  }));
  if (mass === 0) return frame;

  const start = (size, scaledSize, moment) => {
    const wanted = Math.floor(size / 2) - Math.floor(moment / (2 * mass));
    return Math.min(Math.max(wanted, 0), size - scaledSize);
  };
  const top = start(height, rows.length, momentDown);
  const left = start(width, columns.length, momentAcross);
  scaled.forEach((row, i) => frame.set(row, (top + i) * width + left));
  return frame;
}
