// Example queries: boxes on the picture, each with a name, that are looked for like words, in further pictures too.

const AROUND = 1 / 4; // of the sides of a box on each side, which the image tower sees too
const LONGEST = 384; // pixels of a kept crop: more than image towers take
const STEP = 16; // parts of a pixel; sums of such numbers are exact, so that no box reaches beyond its crop

/** Cuts a box of an img out with what is around it; returns {canvas, box: the box on the canvas}. */
function cut(image, [x, y, w, h], [width, height]) {
  const [left, top] = [Math.max(Math.floor(x - AROUND * w), 0), Math.max(Math.floor(y - AROUND * h), 0)];
  const across = Math.min(Math.ceil(x + (1 + AROUND) * w), width) - left;
  const down = Math.min(Math.ceil(y + (1 + AROUND) * h), height) - top;
  const scale = Math.min(1, LONGEST / Math.max(across, down));
  const sides = [across, down].map((side) => Math.max(Math.round(side * scale), 1));
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = sides;
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(image, left, top, across, down, 0, 0, ...sides);
  const place = (value, i) => Math.floor((value * sides[i] * STEP) / [across, down][i]) / STEP;
  const from = [x - left, y - top].map(place);
  const size = [w, h].map((value, i) => Math.min(Math.max(place(value, i), 1 / STEP), sides[i] - from[i]));
  return { canvas, box: [...from, ...size] };
}

/**
 * elements: {list, form, name, numbers: [x, y, w, h inputs], start, cancel}.
 * on: {change(), use()}: another set of boxes to paint; an example is ready, so look for it.
 */
export class ExampleQueries {
  constructor(elements, on) {
    Object.assign(this, { elements, on, queries: [], draft: null, size: null, image: null });
    elements.start.addEventListener('click', () => this.begin());
    elements.cancel.addEventListener('click', () => this.end());
    elements.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.add();
    });
    elements.form.addEventListener('keydown', (event) => event.key === 'Escape' && this.end());
    for (const input of elements.numbers) {
      input.addEventListener('input', () => this.draw(elements.numbers.map((number) => number.valueAsNumber), false));
    }
  }

  /** Keeps the examples as crops, before their picture goes. */
  leave() {
    this.queries = this.queries.map(({ name, crop }) => ({ name, crop, box: null }));
    this.end();
  }

  /** Takes boxes on another picture from now on: `image` is its img, `size` its [width, height]. */
  enter(image, size) {
    Object.assign(this, { image, size });
  }

  /** The boxes to paint on the picture. */
  get boxes() {
    return [...this.queries.map((query) => query.box), this.draft].filter(Boolean);
  }

  /** The examples as a request has them: those of other pictures with their crops. */
  get asked() {
    return this.queries.map(({ name, crop, box }) =>
      (box ? { name, box } : { name, box: crop.box, image: crop.canvas.toDataURL() }));
  }

  /** Opens the form with a box in the middle, for those who draw by numbers. */
  begin() {
    if (this.draft) return;
    this.draw(this.size.flatMap((side) => Math.round(side / 4)).concat(this.size.map((side) => Math.ceil(side / 2))));
    this.elements.name.focus();
  }

  /** Takes a box while it is drawn, cut to the picture. */
  draw(box, fill = true) {
    if (box.some((value) => !Number.isFinite(value))) return;
    const [width, height] = this.size;
    const x = Math.min(Math.max(Math.round(box[0]), 0), width - 1);
    const y = Math.min(Math.max(Math.round(box[1]), 0), height - 1);
    const w = Math.min(Math.max(Math.round(box[2]), 1), width - x);
    const h = Math.min(Math.max(Math.round(box[3]), 1), height - y);
    this.draft = [x, y, w, h];
    const { form, numbers, start } = this.elements;
    if (form.hidden) this.elements.name.value = this.freeName();
    form.hidden = false;
    start.ariaExpanded = 'true';
    if (fill) numbers.forEach((input, i) => (input.value = this.draft[i]));
    this.on.change();
  }

  freeName() {
    const taken = new Set(this.queries.map((query) => query.name));
    let number = 1;
    while (taken.has(`example ${number}`)) number++;
    return `example ${number}`;
  }

  add() {
    const name = this.elements.name.value.trim();
    const query = { name, box: this.draft, crop: cut(this.image, this.draft, this.size) };
    this.queries = [...this.queries.filter((other) => other.name !== name), query];
    this.end();
    this.list();
    this.on.use();
  }

  end() {
    const { form, start } = this.elements;
    if (form.contains(document.activeElement)) start.focus();
    this.draft = null;
    form.hidden = true;
    start.ariaExpanded = 'false';
    this.on.change();
  }

  list() {
    this.elements.list.replaceChildren(...this.queries.map((query) => {
      const item = document.createElement('li');
      const remove = Object.assign(document.createElement('button'), { type: 'button', textContent: '×' });
      remove.ariaLabel = remove.title = `Remove ${query.name}`;
      remove.addEventListener('click', () => {
        this.queries = this.queries.filter((other) => other !== query);
        this.list();
        this.on.change();
        this.elements.start.focus();
      });
      const name = Object.assign(document.createElement('span'), { textContent: query.name });
      item.append(thumbnail(query.crop), name, remove);
      return item;
    }));
  }
}

function thumbnail({ canvas: from, box: [x, y, w, h] }) {
  const canvas = Object.assign(document.createElement('canvas'), { width: 72, height: 72 });
  const scale = Math.min(72 / w, 72 / h);
  const [width, height] = [w * scale, h * scale];
  canvas.getContext('2d').drawImage(from, x, y, w, h, (72 - width) / 2, (72 - height) / 2, width, height);
  return canvas;
}
