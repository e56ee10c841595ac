// Decodes COCO's compressed run-length codes (RLE), and traces the outlines of their masks.

/** Returns the lengths of the runs, off and on in turn, down one column after the other. */
export function runLengths(counts) {
  const lengths = [];
  let value = 0;
  let unit = 1;
  for (let i = 0; i < counts.length; i++) {
    const digit = counts.charCodeAt(i) - 48; // five bits of the number, and one that says whether more follow
    value += (digit & 31) * unit;
    unit *= 32;
    if (digit & 32) continue;
    if (digit & 16) value -= unit;
    // From the fourth on, a number is the difference to the one two before.
    lengths.push(lengths.length > 2 ? value + lengths[lengths.length - 2] : value);
    value = 0;
    unit = 1;
  }
  return lengths;
}

/** Returns the number of pixels that are on. */
export const area = (rle) => runLengths(rle.counts).reduce((sum, length, i) => sum + (i % 2) * length, 0);

/** Returns {column: rows at which the mask goes on and off in turn}, of the columns that have a pixel. */
function changes(rle) {
  const height = rle.size[0];
  const columns = new Map();
  let at = 0;
  runLengths(rle.counts).forEach((length, i) => {
    const end = at + length;
    while (i % 2 && at < end) {
      const column = Math.floor(at / height);
      const until = Math.min(end, (column + 1) * height);
      if (!columns.has(column)) columns.set(column, []);
      columns.get(column).push(at - column * height, until - column * height);
      at = until;
    }
    at = end;
  });
  return columns;
}

/** Calls edge(y0, y1) for the borders between two neighbouring columns, downwards where the left one is on. */
function borders(left, right, edge) {
  let [i, j, side, start] = [0, 0, 0, 0];
  while (i < left.length || j < right.length) {
    const y = Math.min(left[i] ?? Infinity, right[j] ?? Infinity);
    if (left[i] === y) i++;
    if (right[j] === y) j++;
    const now = (i % 2) - (j % 2);
    if (now === side) continue;
    if (side) edge(side > 0 ? start : y, side > 0 ? y : start);
    [side, start] = [now, y];
  }
}

/**
 * Returns the outlines of a mask along the edges of its pixels: closed polygons [x, y, x, y, ...], holes among them.
 *
 * Time grows with the runs and the length of the outlines, not with the pixels.
 */
export function outlines(rle) {
  const columns = changes(rle);
  const stride = rle.size[0] + 1;
  const next = new Map(); // corner -> the next one along the outline, with the mask to the right
  const second = new Map(); // the other one where two pixels touch at a corner only
  const edge = (x0, y0, x1, y1) => {
    const from = x0 * stride + y0;
    (next.has(from) ? second : next).set(from, x1 * stride + y1);
  };
  for (const [x, ends] of columns) {
    ends.forEach((y, i) => (i % 2 ? edge(x + 1, y, x, y) : edge(x, y, x + 1, y)));
    borders(columns.get(x - 1) ?? [], ends, (y0, y1) => edge(x, y0, x, y1));
    if (!columns.has(x + 1)) borders(ends, [], (y0, y1) => edge(x + 1, y0, x + 1, y1));
  }
  const polygons = [];
  while (next.size) {
    const first = next.keys().next().value;
    const points = [];
    let at = first;
    do {
      points.push(Math.floor(at / stride), at % stride);
      const to = next.get(at);
      if (second.has(at)) {
        next.set(at, second.get(at));
        second.delete(at);
      } else next.delete(at);
      at = to;
    } while (at !== first);
    polygons.push(points);
  }
  return polygons;
}

/** Returns a polygon along pixel edges without its stairs: corners are cut by half a pixel, straight sides stay. */
export function withoutStairs(points) {
  const corners = [];
  const count = points.length;
  for (let i = 0; i < count; i += 2) {
    const [x, y] = [points[i], points[i + 1]];
    const [fromX, fromY] = [points.at(i - 2), points.at(i - 1)];
    const [toX, toY] = [points[(i + 2) % count], points[(i + 3) % count]];
    if ((fromX === x) === (toX === x)) continue; // straight on
    corners.push(x + Math.sign(fromX - x) / 2, y + Math.sign(fromY - y) / 2);
    corners.push(x + Math.sign(toX - x) / 2, y + Math.sign(toY - y) / 2);
  }
  return corners;
}

/** Returns the Path2D of a mask, in pixels of the picture; fill it by the rule 'evenodd'. */
export function maskPath(rle) {
  const path = new Path2D();
  for (const polygon of outlines(rle)) {
    const points = withoutStairs(polygon);
    path.moveTo(points[0], points[1]);
    for (let i = 2; i < points.length; i += 2) path.lineTo(points[i], points[i + 1]);
    path.closePath();
  }
  return path;
}
