// Paints detections and example boxes: translucent masks, thin outlines, readable labels. Units are picture pixels.

const INK = '#202124';
const LABEL_SIZE = 12;

/** Returns the [r, g, b] of a class, as `vild-jax detect` draws it: hues advance by the golden angle. */
export function classColor(label) {
  const hue = (0.58 + label * 0.61803398875) % 1;
  const [lightness, saturation] = [[0.56, 0.85], [0.66, 0.75], [0.48, 0.75]][Math.floor(label / 5) % 3];
  const spread = saturation * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((offset) => {
    const k = (offset + 12 * hue) % 12;
    return Math.round(255 * (lightness - spread * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

/** Returns a CSS colour. */
export const css = ([r, g, b], alpha = 1) => `rgb(${r} ${g} ${b} / ${alpha})`;

/** Returns the colour of text on a colour: the one that stands out more, by the relative luminance of WCAG. */
function inkOn(color) {
  const [r, g, b] = color.map((v) => (v <= 10 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2 ? INK : '#fff';
}

/**
 * Paints detections over a picture.
 *
 * context: of a canvas of the picture's size times `scale`; what is on it stays.
 * items: [{box: [x, y, w, h], path: Path2D or null, color: [r, g, b], title}], best first.
 * layers: {boxes, masks, labels}, which to paint.
 * lit: the one to bring forward, or null; the others fade.
 * unit: how wide a thin line is, in pixels of the canvas.
 */
export function paint(context, items, { scale, unit, layers, lit = null }) {
  const bySize = [...items].sort((a, b) => b.box[2] * b.box[3] - a.box[2] * a.box[3]); // small ones on top
  const order = lit ? [...bySize.filter((item) => item !== lit), lit] : bySize;
  const fade = (item) => (lit && item !== lit ? 0.35 : 1);
  context.save();
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.lineJoin = 'round';
  for (const item of order) {
    if (!layers.masks || !item.path) continue;
    context.globalAlpha = fade(item);
    context.fillStyle = css(item.color, item === lit ? 0.55 : 0.38);
    context.fill(item.path, 'evenodd');
    context.strokeStyle = css(item.color);
    context.lineWidth = (1.2 * unit) / scale;
    context.stroke(item.path);
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
  for (const item of order) {
    if (!layers.boxes) continue;
    context.globalAlpha = fade(item);
    const box = item.box.map((value) => value * scale);
    context.lineWidth = (item === lit ? 4.5 : 3) * unit;
    context.strokeStyle = 'rgb(0 0 0 / 0.35)';
    context.strokeRect(...box);
    context.lineWidth = (item === lit ? 3 : 1.8) * unit;
    context.strokeStyle = css(item.color);
    context.strokeRect(...box);
  }
  const labelled = lit ? [lit, ...items.filter((item) => item !== lit)] : items;
  if (layers.labels) paintLabels(context, labelled, scale, unit, lit);
  context.restore();
}

function paintLabels(context, items, scale, unit, lit) {
  context.font = `600 ${LABEL_SIZE * unit}px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif`;
  context.textBaseline = 'middle';
  const height = (LABEL_SIZE + 6) * unit;
  const taken = [];
  for (const item of items) {
    const width = context.measureText(item.title).width + 10 * unit;
    const place = freePlace(item.box.map((value) => value * scale), width, height, context.canvas, taken);
    if (!place) continue; // labels over each other cannot be read, and the colour shows the class
    taken.push([...place, width, height]);
    context.globalAlpha = lit && item !== lit ? 0.45 : 1;
    context.fillStyle = css(item.color);
    context.beginPath();
    context.roundRect(...place, width, height, 3 * unit);
    context.fill();
    context.fillStyle = inkOn(item.color);
    context.fillText(item.title, place[0] + 5 * unit, place[1] + height / 2 + 0.5 * unit);
  }
  context.globalAlpha = 1;
}

/** Returns [x, y] for a label at its box where it covers no other by more than a little, or null. */
function freePlace([x, y, w, h], width, height, canvas, taken) {
  const places = [[x, y - height], [x, y], [x + w - width, y - height], [x, y + h], [x, y + h - height],
    [x + w - width, y + h]];
  for (const [left, top] of places) {
    const at = [
      Math.min(Math.max(left, 0), Math.max(canvas.width - width, 0)),
      Math.min(Math.max(top, 0), Math.max(canvas.height - height, 0)),
    ];
    const covered = taken.reduce((sum, [a, b, c, d]) => {
      const across = Math.min(at[0] + width, a + c) - Math.max(at[0], a);
      const down = Math.min(at[1] + height, b + d) - Math.max(at[1], b);
      return sum + Math.max(across, 0) * Math.max(down, 0);
    }, 0);
    if (covered < 0.1 * width * height) return at;
  }
  return null;
}

/** Paints a box that the user draws or has drawn, [x, y, w, h] in picture pixels: white dashes on black. */
export function paintExample(context, box, { scale, unit }) {
  const scaled = box.map((value) => value * scale);
  context.save();
  context.lineWidth = 2 * unit;
  context.strokeStyle = 'rgb(0 0 0 / 0.8)';
  context.strokeRect(...scaled);
  context.setLineDash([6 * unit, 5 * unit]);
  context.strokeStyle = '#fff';
  context.strokeRect(...scaled);
  context.restore();
}
