// Shows the picture with a canvas over it, tells what the pointer is on, and lets the user draw a box.

import { paint, paintExample } from './paint.js';

const ENLARGED = 4; // at most, of small pictures
const TALLEST = 62; // per cent of the window, so that what is below stays in view
const SMALLEST = 4; // CSS pixels; a shorter movement is a click

/**
 * frame: the element that holds `image` (an img) and `canvas`.
 * on: {hover(item or null), draw(box), drawn(box)}; boxes are [x, y, w, h] in whole pixels of the picture.
 */
export class Stage {
  constructor(frame, image, canvas, on) {
    Object.assign(this, { frame, image, canvas, on });
    this.size = null; // [width, height] of the picture
    this.items = [];
    this.layers = { boxes: true, masks: true, labels: true };
    this.lit = null;
    this.boxes = []; // example boxes
    this.mayDraw = false; // with a mouse at any time
    this.drawing = false; // with a finger too, which otherwise scrolls the page
    this.start = null;
    new ResizeObserver(() => this.paint()).observe(frame);
    canvas.addEventListener('pointerdown', (event) => this.press(event));
    canvas.addEventListener('pointermove', (event) => this.move(event));
    canvas.addEventListener('pointerup', (event) => this.release(event));
    canvas.addEventListener('pointercancel', () => (this.start = null));
    // A finger that is lifted leaves too, and what it has touched should stay.
    canvas.addEventListener('pointerleave', (event) => event.pointerType === 'mouse' && this.on.hover(null));
  }

  /** Shows another picture, whose img is loaded. */
  show(width, height) {
    Object.assign(this, { size: [width, height], items: [], boxes: [], lit: null });
    this.frame.style.aspectRatio = `${width} / ${height}`;
    this.frame.style.width = `min(100%, ${ENLARGED * width}px, ${(TALLEST * width) / height}vh)`;
    this.paint();
  }

  paint() {
    if (!this.size) return;
    const { canvas } = this;
    const unit = window.devicePixelRatio || 1;
    const { width, height } = this.frame.getBoundingClientRect();
    [canvas.width, canvas.height] = [Math.round(width * unit), Math.round(height * unit)];
    const context = canvas.getContext('2d');
    const scale = canvas.width / this.size[0];
    paint(context, this.items, { scale, unit, layers: this.layers, lit: this.lit });
    for (const box of this.boxes) paintExample(context, box, { scale, unit });
  }

  /** The pixel of the picture under the pointer, fractional, inside the picture. */
  at(event) {
    const place = this.canvas.getBoundingClientRect();
    const [width, height] = this.size;
    const inside = (value, most) => Math.min(Math.max(value, 0), most);
    return [
      inside(((event.clientX - place.left) / place.width) * width, width),
      inside(((event.clientY - place.top) / place.height) * height, height),
    ];
  }

  /** The smallest item whose box holds a point, one whose mask holds it first. */
  under([x, y]) {
    const context = this.canvas.getContext('2d');
    const size = ({ box, path }) =>
      box[2] * box[3] + (path && !context.isPointInPath(path, x, y, 'evenodd') ? this.size[0] * this.size[1] : 0);
    const held = this.items.filter(({ box: [a, b, w, h] }) => x >= a && x <= a + w && y >= b && y <= b + h);
    return held.reduce((best, item) => (best && size(best) <= size(item) ? best : item), null);
  }

  press(event) {
    if (!this.size || event.button) return;
    if (this.drawing || (this.mayDraw && event.pointerType === 'mouse')) {
      this.start = { x: event.clientX, y: event.clientY, at: this.at(event) };
      this.canvas.setPointerCapture(event.pointerId);
    }
    if (event.pointerType !== 'mouse') this.on.hover(this.under(this.at(event)));
  }

  move(event) {
    if (!this.size) return;
    if (!this.start) this.on.hover(this.under(this.at(event)));
    else if (this.far(event)) this.on.draw(this.box(event));
  }

  release(event) {
    if (this.start && this.far(event)) this.on.drawn(this.box(event));
    this.start = null;
  }

  far(event) {
    return Math.min(Math.abs(event.clientX - this.start.x), Math.abs(event.clientY - this.start.y)) >= SMALLEST;
  }

  box(event) {
    const [a, b] = [this.start.at, this.at(event)];
    const [x, y] = [0, 1].map((i) => Math.floor(Math.min(a[i], b[i])));
    const [right, bottom] = [0, 1].map((i) => Math.ceil(Math.max(a[i], b[i])));
    return [x, y, right - x, bottom - y];
  }
}
