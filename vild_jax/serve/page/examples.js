// Example queries: boxes on the picture, each with a name, that are looked for like words.

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

  /** Forgets all boxes, for another picture: `image` is its img, `size` its [width, height]. */
  reset(image, size) {
    Object.assign(this, { image, size, queries: [] });
    this.end();
    this.list();
  }

  get boxes() {
    return [...this.queries.map((query) => query.box), ...(this.draft ? [this.draft] : [])];
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
    this.queries = [...this.queries.filter((query) => query.name !== name), { name, box: this.draft }];
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
      item.append(this.crop(query.box), name, remove);
      return item;
    }));
  }

  crop([x, y, w, h]) {
    const canvas = Object.assign(document.createElement('canvas'), { width: 72, height: 72 });
    const scale = Math.min(72 / w, 72 / h);
    const [width, height] = [w * scale, h * scale];
    canvas.getContext('2d').drawImage(this.image, x, y, w, h, (72 - width) / 2, (72 - height) / 2, width, height);
    return canvas;
  }
}
