// Keeps an answer and what is shown of it: classes, scores, the order of the table.

import { classColor, css } from './paint.js';
import { maskPath } from './rle.js';

const LONGEST_TITLE = 28; // characters of a name in the picture
const SORTS = {
  class: (a, b) => a.name.localeCompare(b.name) || b.score - a.score,
  score: (a, b) => b.score - a.score,
  size: (a, b) => b.box[2] * b.box[3] - a.box[2] * a.box[3],
};

const short = (name) => (name.length > LONGEST_TITLE ? `${name.slice(0, LONGEST_TITLE - 1)}…` : name);

/** Returns the most probable of {name: probability}. */
const likeliest = (attributes) => Object.keys(attributes).reduce((a, b) => (attributes[b] > attributes[a] ? b : a));

/** Returns the detections of an answer as items to paint and list, best first. */
export function itemsOf(answer) {
  return answer.detections.map((found, index) => {
    const attribute = found.attributes ? likeliest(found.attributes) : null;
    const name = attribute ? `${attribute}, ${found.class}` : found.class;
    return {
      index,
      label: found.label,
      name: found.class,
      attribute,
      attributes: found.attributes,
      score: found.score,
      box: found.box,
      segmentation: found.segmentation,
      path: found.segmentation?.counts ? maskPath(found.segmentation) : null,
      color: classColor(found.label),
      title: `${short(name)} ${Math.round(100 * found.score)}`,
    };
  });
}

/**
 * elements: {classes, table, slider, score}; on: {change(), light(item or null)}.
 */
export class Results {
  constructor(elements, on) {
    Object.assign(this, { elements, on, items: [], classes: [], hidden: new Set(), lit: null });
    this.order = { key: 'score', back: false };
    elements.slider.addEventListener('input', () => this.change());
    for (const head of elements.table.querySelectorAll('th[data-sort]')) {
      head.querySelector('button').addEventListener('click', () => this.sort(head.dataset.sort));
    }
    this.body = elements.table.tBodies[0];
    this.body.addEventListener('keydown', (event) => this.step(event));
    this.body.addEventListener('pointerover', (event) => this.on.light(this.itemOf(event.target)));
    this.body.addEventListener('pointerleave', () => this.on.light(null));
    this.body.addEventListener('focusin', (event) => this.on.light(this.itemOf(event.target)));
    this.body.addEventListener('focusout', () => this.on.light(null));
  }

  /** Takes another answer; `names` are all that was asked for, of which those of `words` are listed in any case. */
  take(items, names, words) {
    const counts = names.map((_, label) => items.filter((item) => item.label === label).length);
    const classes = names.map((name, label) => ({ name, label, count: counts[label] }));
    this.items = items;
    this.classes = words ? classes : classes.filter(({ count }) => count);
    this.hidden.clear();
    this.listClasses();
    this.change();
  }

  get lowest() {
    return Number(this.elements.slider.value);
  }

  get shown() {
    return this.items.filter((item) => item.score >= this.lowest && !this.hidden.has(item.label));
  }

  change() {
    this.elements.score.textContent = this.lowest.toFixed(2);
    this.listItems();
    this.on.change();
  }

  listClasses() {
    const rows = this.classes.map(({ name, label, count }) => {
      const row = document.createElement('label');
      const box = Object.assign(document.createElement('input'), { type: 'checkbox', checked: true, value: label });
      box.addEventListener('change', () => {
        if (box.checked) this.hidden.delete(label);
        else this.hidden.add(label);
        this.change();
      });
      const swatch = document.createElement('i');
      swatch.style.background = css(classColor(label));
      const small = Object.assign(document.createElement('small'), { textContent: count });
      small.title = `${count} found, at any score`;
      const text = Object.assign(document.createElement('span'), { textContent: name, title: name });
      row.append(box, swatch, text, small);
      return row;
    });
    this.elements.classes.replaceChildren(...rows);
  }

  /** Shows all classes, or none. */
  showClasses(all) {
    this.hidden = new Set(all ? [] : this.classes.map(({ label }) => label));
    for (const box of this.elements.classes.querySelectorAll('input')) box.checked = all;
    this.change();
  }

  sort(key) {
    this.order = { key, back: this.order.key === key && !this.order.back };
    this.listItems();
  }

  listItems() {
    const { key, back } = this.order;
    for (const head of this.elements.table.querySelectorAll('th[data-sort]')) {
      const falls = head.dataset.sort === 'class' ? back : !back;
      head.ariaSort = head.dataset.sort === key ? (falls ? 'descending' : 'ascending') : 'none';
    }
    const items = [...this.shown].sort(SORTS[key]);
    if (back) items.reverse();
    this.body.replaceChildren(...items.map((item, place) => this.row(item, place)));
  }

  row(item, place) {
    const row = document.createElement('tr');
    row.tabIndex = place ? -1 : 0; // one stop for the Tab key; the arrow keys go on
    row.dataset.index = item.index;
    row.classList.toggle('lit', item === this.lit);
    const swatch = document.createElement('i');
    swatch.style.background = css(item.color);
    const name = document.createElement('th');
    name.scope = 'row';
    name.append(swatch, item.name);
    const small = Object.assign(document.createElement('small'), { textContent: item.attribute });
    if (item.attribute) name.append(' ', small);
    const shares = Object.entries(item.attributes ?? {}).map(([key, share]) => `${key} ${share.toFixed(2)}`);
    name.title = [item.name, ...shares].join(', ');
    const [x, y, w, h] = item.box.map(Math.round);
    const cells = [item.score.toFixed(2), `${w} × ${h}`, `${x}, ${y}`].map((text) =>
      Object.assign(document.createElement('td'), { textContent: text }));
    row.append(name, ...cells);
    return row;
  }

  itemOf(element) {
    const row = element.closest('tr');
    return row ? this.items[row.dataset.index] : null;
  }

  /** Marks the row of an item, and brings it into view inside the table without moving the page. */
  light(item, scroll) {
    this.lit = item;
    for (const row of this.body.rows) {
      const is = item !== null && Number(row.dataset.index) === item.index;
      row.classList.toggle('lit', is);
      const around = this.elements.table.parentElement;
      if (is && scroll) around.scrollTop = row.offsetTop - around.clientHeight / 2;
    }
  }

  step(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const rows = [...this.body.rows];
    const now = rows.indexOf(event.target.closest('tr'));
    const to = rows[Math.min(Math.max(now + steps[event.key], 0), rows.length - 1)];
    rows[now].tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}
