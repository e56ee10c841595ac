// Connects the page: the picture, what to look for, and what was found.

import * as api from './api.js';
import { card } from './card.js';
import { ExampleQueries } from './examples.js';
import { itemsOf, Results } from './results.js';
import { coco, download, png } from './save.js';
import { Stage } from './stage.js';

const LOWEST_SCORE = 0.05; // asked for; the slider goes on from there without a request
const MOST_DETECTIONS = 100;
const byId = (id) => document.getElementById(id);
const state = { about: null, picture: null, answer: null, running: null };

// --- messages -------------------------------------------------------------------------------------------------------

function fail(error) {
  byId('error').textContent = error ? (error.message ?? error) : '';
  if (error) byId('status').textContent = '';
}

const plural = (number, one, more = `${one}s`) => `${number.toLocaleString('en')} ${number === 1 ? one : more}`;
const duration = (seconds) =>
  seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;

function list(element, entries) {
  element.replaceChildren(...entries.map(([key, value]) => {
    const row = document.createElement('div');
    row.append(Object.assign(document.createElement('dt'), { textContent: key }));
    row.append(Object.assign(document.createElement('dd'), { textContent: value }));
    return row;
  }));
}

// --- the parts ------------------------------------------------------------------------------------------------------

const stage = new Stage(byId('frame'), byId('image'), byId('canvas'), {
  hover: (item) => light(item, true),
  draw: (box) => queries.draw(box),
  drawn: () => byId('example-name').select(),
});

const queries = new ExampleQueries(
  {
    list: byId('examples'),
    form: byId('example-form'),
    name: byId('example-name'),
    numbers: ['box-x', 'box-y', 'box-w', 'box-h'].map(byId),
    start: byId('mark'),
    cancel: byId('example-cancel'),
  },
  {
    change: () => {
      stage.boxes = queries.boxes;
      stage.drawing = queries.draft !== null;
      byId('canvas').classList.toggle('drawing', stage.drawing);
      stage.paint();
    },
    use: () => run(),
  },
);

const results = new Results(
  { classes: byId('classes'), table: byId('rows').firstElementChild, slider: byId('slider'), score: byId('score') },
  { change: showFound, light: (item) => light(item, false) },
);

byId('slider').min = LOWEST_SCORE;

function light(item, scroll) {
  if (item === stage.lit) return;
  stage.lit = item;
  results.light(item, scroll);
  stage.paint();
}

function showFound() {
  if (!state.answer) return;
  const { shown, items } = results;
  Object.assign(stage, { items: shown, lit: shown.includes(stage.lit) ? stage.lit : null });
  stage.paint();
  const classes = new Set(shown.map((item) => item.label)).size;
  const told = `${plural(shown.length, 'object')} of ${plural(classes, 'class', 'classes')} shown`;
  const rest = items.length - shown.length;
  byId('status').textContent = items.length
    ? `${told}${rest ? `, ${plural(rest, 'more', 'more')} below the lowest score or switched off` : ''}.`
    : 'Nothing of that was found.';
  byId('canvas').ariaLabel = `The picture, ${told}: ${shown.slice(0, 5).map((item) => item.title).join(', ')}`;
}

// --- the picture ----------------------------------------------------------------------------------------------------

async function take(blob, name) {
  if (blob.type && !blob.type.startsWith('image/')) {
    fail(`${name} is of the type ${blob.type}; expected a picture`);
    return;
  }
  state.running?.abort();
  queries.leave();
  allowExamples(false);
  const image = byId('image');
  const old = image.src;
  image.src = URL.createObjectURL(blob);
  if (old) URL.revokeObjectURL(old);
  Object.assign(state, { picture: { blob, name, id: null }, answer: null });
  byId('results').hidden = true;
  byId('picture-name').textContent = name;
  fail(null);
  const shown = await image.decode().then(() => true, () => false);
  if (state.picture.blob !== blob) return; // another one came meanwhile
  byId('empty').hidden = shown;
  byId('frame').hidden = !shown;
  if (shown) {
    const size = [image.naturalWidth, image.naturalHeight];
    Object.assign(state.picture, { width: size[0], height: size[1] });
    byId('picture-name').textContent = `${name}, ${size.join(' × ')}`;
    stage.show(...size);
    queries.enter(image, size);
  } else byId('picture-name').textContent = `${name}, which this browser cannot show`;
  byId('save-png').disabled = !shown;
  allowExamples(shown);
  await run(); // the service says what is wrong with a picture that this browser cannot show
}

function allowExamples(shown) {
  const { about } = state;
  const no = about?.examples_allowed === false && 'This model has no image tower: it cannot look for what a box shows.';
  stage.mayDraw = Boolean(shown && about?.examples_allowed);
  byId('mark').disabled = !stage.mayDraw;
  byId('mark').title = no || (shown ? 'Draw a box, and look for what is inside' : 'Choose a picture first');
}

// --- a request ------------------------------------------------------------------------------------------------------

function words(id) {
  const all = byId(id).value.split(/[,\n]/).map((word) => word.trim());
  return [...new Set(all)].filter(Boolean);
}

async function run() {
  const { picture } = state;
  if (!picture) {
    fail('Choose a picture first.');
    byId('file').focus();
    return;
  }
  state.running?.abort();
  const running = new AbortController();
  state.running = running;
  busy(true);
  fail(null);
  const [classes, attributes] = [words('words'), words('attributes')];
  const started = performance.now();
  try {
    if (!state.about) await begin(); // the service was away, or had no token
    const request = {
      ...(classes.length ? { classes } : {}),
      ...(attributes.length ? { attributes } : {}),
      ...(queries.queries.length ? { examples: queries.asked } : {}),
      min_score: LOWEST_SCORE,
      max_detections: MOST_DETECTIONS,
      masks: state.about.masks ? 'rle' : 'none',
    };
    const answer = await api.detect(picture, request, running.signal);
    if (state.running === running) show(answer, (performance.now() - started) / 1000, classes.length > 0);
  } catch (error) {
    if (state.running !== running || error.name === 'AbortError') return;
    fail(error.status ? `${error.message} (${error.status})` : error);
  } finally {
    if (state.running === running) busy(false);
  }
}

function busy(is) {
  byId('run').ariaBusy = String(is);
  byId('run').textContent = is ? 'Looking …' : 'Find';
  byId('place').classList.toggle('busy', is);
  if (is) byId('status').textContent = 'Looking …';
  else state.running = null;
}

function show(answer, roundTrip, named) {
  state.answer = answer;
  const { seconds, cached, image: { width, height } } = answer;
  // Boxes are in the pixels that the service saw.
  if (!byId('frame').hidden) stage.size = [width, height];
  Object.assign(state.picture, { width, height });
  list(byId('times'), [
    ['Decoding', duration(seconds.decode)],
    ['Image features', cached ? 'kept from before' : duration(seconds.image)],
    ['Words', duration(seconds.words)],
    ['Service, total', duration(seconds.total)],
    ['Round trip', duration(roundTrip)],
  ]);
  byId('results').hidden = false;
  stage.lit = null;
  results.take(itemsOf(answer), answer.classes, named);
}

// --- the model ------------------------------------------------------------------------------------------------------

function describe(about) {
  state.about = about;
  document.title = `${about.name} – vild-jax`;
  byId('model').textContent = about.name;
  byId('lead').textContent = `Finds what you name in a picture: ${about.masks ? 'boxes and masks' : 'boxes'}.`;
  byId('words').placeholder = about.names.slice(0, 3).join(', ');
  byId('own').textContent = about.words_allowed
    ? `Empty: the ${plural(about.classes, 'class', 'classes')} of the model's vocabulary.`
    : `The model has no text tower: it knows the ${plural(about.classes, 'name')} of its vocabulary alone. Empty: all.`;
  byId('attributes-field').hidden = !about.words_allowed;
  byId('layer-masks').disabled = !about.masks;
  if (!about.masks) byId('layer-masks').parentElement.title = 'This model finds boxes alone.';
  const names = `${about.names.slice(0, 12).join(', ')}${about.classes > 12 ? ' …' : ''}`;
  list(byId('facts'), [
    ['Name', about.name],
    ['Vocabulary', `${about.classes.toLocaleString('en')}: ${names}`],
    ['Finds', about.masks ? 'boxes and masks' : 'boxes'],
    ['Any words', about.words_allowed ? 'yes' : 'no, it has no text tower'],
    ['Examples by boxes', about.examples_allowed ? 'yes' : 'no, it has no image tower'],
    ['Pictures are seen at', `${about.image_size} × ${about.image_size} pixels`],
    ['Largest picture', `${about.limits.pixels / 1e6} megapixels, ${about.limits.picture_bytes / 1e6} MB`],
    ['Version', about.version],
  ]);
  byId('card').hidden = !about.card;
  byId('card').lastElementChild.replaceChildren(...card(about.card));
  allowExamples(!byId('frame').hidden);
}

async function begin() {
  describe(await api.about());
  await offerSamples();
}

async function offerSamples() {
  const samples = await api.examples();
  const rows = await Promise.all(samples.map(async ({ name }) => {
    const picture = await api.example(name);
    const button = Object.assign(document.createElement('button'), { type: 'button', title: name });
    const image = Object.assign(document.createElement('img'), { src: URL.createObjectURL(picture), alt: name });
    button.append(image);
    button.addEventListener('click', () => take(picture, `${name}.png`));
    const row = document.createElement('li');
    row.append(button);
    return row;
  }));
  byId('samples').hidden = !rows.length;
  byId('samples').lastElementChild.replaceChildren(...rows);
}

// --- what the user does ---------------------------------------------------------------------------------------------

function takeFirst(files) {
  if (files.length) take(files[0], files[0].name);
}

byId('file').addEventListener('change', (event) => {
  takeFirst([...event.target.files]);
  event.target.value = ''; // so that the same file can be chosen again
});
document.addEventListener('paste', (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  takeFirst(event.clipboardData.files);
});
document.addEventListener('dragover', (event) => {
  if (!event.dataTransfer.types.includes('Files')) return; // text may be dropped where text is
  event.preventDefault();
  byId('place').classList.add('over');
});
document.addEventListener('dragleave', (event) => event.relatedTarget ?? byId('place').classList.remove('over'));
document.addEventListener('drop', (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  byId('place').classList.remove('over');
  takeFirst(event.dataTransfer.files);
});

byId('query').addEventListener('submit', (event) => {
  event.preventDefault();
  run();
});
byId('words').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  run();
});
for (const layer of ['boxes', 'masks', 'labels']) {
  byId(`layer-${layer}`).addEventListener('change', (event) => {
    stage.layers[layer] = event.target.checked;
    stage.paint();
  });
}
byId('all').addEventListener('click', () => results.showClasses(true));
byId('none').addEventListener('click', () => results.showClasses(false));

const stem = () => state.picture.name.replace(/\.\w+$/, '');
byId('save-json').addEventListener('click', () => {
  const text = JSON.stringify(coco(state.picture, results.shown, state.answer.classes));
  download(new Blob([text], { type: 'application/json' }), `${stem()}.json`);
});
byId('save-png').addEventListener('click', async () => {
  try {
    download(await png(byId('image'), state.picture, results.shown, stage.layers), `${stem()}_found.png`);
  } catch (error) {
    fail(error);
  }
});

api.onTokenNeeded(() => new Promise((resolve) => {
  const dialog = byId('token-dialog');
  dialog.returnValue = '';
  dialog.addEventListener('close', () => resolve(dialog.returnValue && byId('token').value), { once: true });
  dialog.showModal();
}));

try {
  await begin();
} catch (error) {
  fail(error);
}
