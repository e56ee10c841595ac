// Downloads what is shown: JSON in the form of COCO's annotation files, and the picture with the drawings.

import { paint } from './paint.js';
import { area } from './rle.js';

const MOST_PIXELS = 2 ** 24; // phones give an empty canvas beyond
const [LEGIBLE, LARGE] = [400, 2560]; // sides between which lines grow with the picture; smaller ones are enlarged

/** Returns the shown items as a COCO annotation file with scores; `names` are all classes asked for, ids from 1. */
export function coco(picture, items, names) {
  return {
    images: [{ id: 1, file_name: picture.name, width: picture.width, height: picture.height }],
    categories: names.map((name, label) => ({ id: label + 1, name })),
    annotations: items.map((item, index) => ({
      id: index + 1,
      image_id: 1,
      category_id: item.label + 1,
      bbox: item.box,
      area: item.segmentation ? area(item.segmentation) : item.box[2] * item.box[3],
      iscrowd: 0,
      score: item.score,
      ...(item.segmentation ? { segmentation: item.segmentation } : {}),
      ...(item.attributes ? { attributes: item.attributes } : {}),
    })),
  };
}

/** Returns a PNG (Blob) of the picture, an img of `width` x `height`, with the items; at most 16 megapixels. */
export async function png(image, { width, height }, items, layers) {
  const side = Math.max(width, height);
  const most = Math.sqrt(MOST_PIXELS / (width * height));
  const scale = Math.min(side < LEGIBLE ? Math.min(Math.ceil(LEGIBLE / side), 4) : 1, most);
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const unit = Math.max(1, Math.min(side * scale, LARGE) / 900);
  paint(context, items, { scale: canvas.width / width, unit, layers });
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error('The browser made no PNG.'))), 'image/png'));
}

/** Hands a Blob to the user as a file. */
export function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
