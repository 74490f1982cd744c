// The back end of a page that computes by itself: onnxruntime-web runs the network, and no photo leaves the page.
// FACTS, which stands before it, is what export/formats/web.py knows of the model.

const MAX_PIXELS = 80e6;
const REDUCED = [8, 4, 2]; // as JPEGs are decoded elsewhere: smaller, as long as the network still gets all it would see
const MARGIN = 2;
const SIDE = 384; // of a saliency map over its photo, in pixels, at least
const OPACITY = 0.45;
const PNG = [137, 80, 78, 71, 13, 10, 26, 10];
const FRAME = 1; // seconds from one picture of the live camera to the next, at least

const floats = async (text) => new Float32Array(await (await fetch(`data:;base64,${text}`)).arrayBuffer());

// A file beside the page; a page in a single file holds it as an element.
async function bytesOf(name) {
  const held = find(name);
  const response = await fetch(held ? `data:;base64,${held.textContent.trim()}` : name);
  if (!response.ok) throw new Error(`${name} is missing beside this page (HTTP ${response.status}).`);
  held?.remove();
  return response.arrayBuffer();
}

async function start() {
  const [runtime, binary, network] = await Promise.all(["ort.mjs", "ort.wasm", "network.onnx"].map(bytesOf));
  const address = URL.createObjectURL(new Blob([runtime], { type: "text/javascript" }));
  const ort = await import(address);
  URL.revokeObjectURL(address);
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.numThreads = 1; // more take headers that a plain folder does not have
  const { ood, head } = FACTS;
  return {
    Tensor: ort.Tensor,
    session: await ort.InferenceSession.create(new Uint8Array(network), { executionProviders: ["wasm"] }),
    ood: ood && { ...ood, mean: await floats(ood.mean), components: await floats(ood.components) },
    head: head && await floats(head),
  };
}

// --- from a file to the network's input

// PNGs of 16 bits: browsers keep the upper 8, and the data set may use the lower ones.
async function isDeep(source) {
  if (!(source instanceof Blob)) return false;
  const head = new Uint8Array(await source.slice(0, PNG.length + 17).arrayBuffer());
  return PNG.every((byte, at) => head[at] === byte) && head[PNG.length + 16] > 8;
}

async function bitmapOf(source) {
  if (await isDeep(source)) throw new Error("The file has 16 bits for each value, and browsers read only 8: use predict.py, or the server.");
  try {
    return await createImageBitmap(source, { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new Error("This browser cannot read the file as an image: send a JPEG, PNG, WebP, BMP or GIF.");
  }
}

function pixelsOf(bitmap) {
  if (bitmap.width * bitmap.height > MAX_PIXELS) throw new Error(`${bitmap.width} x ${bitmap.height} pixels are too many: send at most 80 million.`);
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

// RGBA of a picture -> { data: RGB, width, height, conversions }, transparency on white, large ones averaged in squares.
function photoOf({ data, width, height }) {
  const least = MARGIN * model.preprocessing.image_size, conversions = [];
  const factor = REDUCED.find((each) => Math.min(width, height) / each >= least) ?? 1;
  const columns = Math.floor(width / factor), rows = Math.floor(height / factor), area = factor * factor;
  const photo = new Uint8Array(3 * columns * rows);
  let transparent = false;
  for (let row = 0, out = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1, out += 3) {
      let red = 0, green = 0, blue = 0;
      for (let y = 0; y < factor; y += 1) {
        let at = 4 * ((row * factor + y) * width + column * factor);
        for (let x = 0; x < factor; x += 1, at += 4) {
          const alpha = data[at + 3], white = 255 - alpha;
          if (white) transparent = true;
          red += white ? (data[at] * alpha) / 255 + white : data[at];
          green += white ? (data[at + 1] * alpha) / 255 + white : data[at + 1];
          blue += white ? (data[at + 2] * alpha) / 255 + white : data[at + 2];
        }
      }
      photo[out] = Math.round(red / area);
      photo[out + 1] = Math.round(green / area);
      photo[out + 2] = Math.round(blue / area);
    }
  }
  if (transparent) conversions.push("transparency put on white");
  return { data: photo, width: columns, height: rows, conversions };
}

// --- from the network's outputs to an answer

function probabilitiesOf(logits) {
  const { temperature, class_scales: scales, class_biases: biases, multi_label: several } = model;
  const scaled = Array.from(logits, (logit, place) => (logit / temperature) * (scales[place] ?? 1) + (biases[place] ?? 0));
  if (several) return scaled.map((value) => 1 / (1 + Math.exp(-value)));
  const highest = Math.max(...scaled), powers = scaled.map((value) => Math.exp(value - highest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// Places of the classes that are chosen, and how certain that is.
function decide(probabilities) {
  if (model.multi_label) {
    const has = probabilities.map((value, place) => value >= (model.label_thresholds[place] ?? 0.5));
    const certainty = Math.min(...probabilities.map((value, place) => (has[place] ? value : 1 - value)));
    return [probabilities.flatMap((_, place) => (has[place] ? [place] : [])), certainty];
  }
  const place = model.threshold != null && probabilities.length === 2
    ? Number(probabilities[1] >= model.threshold)
    : probabilities.indexOf(Math.max(...probabilities));
  return [[place], probabilities[place]];
}

// See models/ood.py.
function oodScore({ mean, components, distances, tail: [share, scale] }, features) {
  const size = mean.length, norm = Math.max(Math.hypot(...features), 1e-12);
  const centred = Float64Array.from(features, (value, at) => value / norm - mean[at]);
  const rest = Float64Array.from(centred);
  for (let first = 0; first < components.length; first += size) {
    let product = 0;
    for (let at = 0; at < size; at += 1) product += centred[at] * components[first + at];
    for (let at = 0; at < size; at += 1) rest[at] -= product * components[first + at];
  }
  const distance = Math.hypot(...rest), last = distances.length - 1, tailStart = distances[last];
  if (distance > tailStart) return 1 - share * Math.exp(-(distance - tailStart) / scale);
  if (distance <= distances[0]) return 0;
  const above = distances.findIndex((each) => each >= distance);
  const part = (distance - distances[above - 1]) / (distances[above] - distances[above - 1]);
  return ((above - 1 + part) / last) * (1 - share);
}

function answerOf({ outputs, conversions, milliseconds }, ood) {
  const probabilities = probabilitiesOf(outputs.logits.data), [chosen, confidence] = decide(probabilities);
  const score = ood ? oodScore(ood, outputs.ood_features.data) : null;
  const abstainReason = score !== null && score > model.ood_threshold ? "out_of_distribution"
    : model.confidence_threshold != null && confidence < model.confidence_threshold ? "low_confidence" : null;
  const labels = chosen.map((place) => model.classes[place]);
  return {
    label: labels.join("|"), labels, confidence, abstained: abstainReason !== null, abstain_reason: abstainReason, ood_score: score,
    probabilities: Object.fromEntries(model.classes.map((name, place) => [name, probabilities[place]])),
    conversions, model_id: model.model_id, milliseconds,
  };
}

async function run(source) {
  const { Tensor, session } = await ready, started = performance.now();
  const bitmap = await bitmapOf(source);
  try {
    const { data, width, height, conversions } = photoOf(pixelsOf(bitmap));
    const outputs = await session.run({ photo: new Tensor("uint8", data, [height, width, 3]) });
    return { outputs, conversions, milliseconds: performance.now() - started };
  } finally {
    bitmap.close();
  }
}

async function predict(file, tell) {
  tell("Looking at it ...");
  const { ood } = await ready;
  return answerOf(await run(file), ood);
}

// --- where it looks

// (h, w) saliency of one class, 0 to 1: its weights times the last map (class activation mapping, Zhou et al. 2016).
function saliencyOf({ data, dims: [, channels, rows, columns] }, weights) {
  const cells = new Float32Array(rows * columns);
  for (let channel = 0; channel < channels; channel += 1) {
    for (let cell = 0; cell < cells.length; cell += 1) cells[cell] += weights[channel] * data[channel * cells.length + cell];
  }
  const most = Math.max(...cells);
  return { cells: cells.map((value) => (most > 0 ? Math.max(value, 0) / most : 0)), rows, columns };
}

// The part of a photo that the network sees, at `side` pixels; black where it sees a border.
function seen(bitmap, side) {
  const context = new OffscreenCanvas(side, side).getContext("2d"), { width, height } = bitmap;
  const square = Math.min(width, height), scale = side / Math.max(width, height);
  context.fillRect(0, 0, side, side);
  if (model.preprocessing.resize === "crop") context.drawImage(bitmap, (width - square) / 2, (height - square) / 2, square, square, 0, 0, side, side);
  else if (model.preprocessing.resize === "squash") context.drawImage(bitmap, 0, 0, side, side);
  else context.drawImage(bitmap, (side - width * scale) / 2, (side - height * scale) / 2, width * scale, height * scale);
  return context;
}

async function explain(file, name, tell) {
  const { head } = await ready;
  if (!head) throw new Error("This network does not average a last map, so the page cannot tell where it looks: predict.py --explain can.");
  tell("Looking at it ...");
  const { outputs } = await run(file), map = outputs.last_map, channels = map.dims[1];
  const first = channels * model.classes.indexOf(name);
  const { cells, rows, columns } = saliencyOf(map, head.subarray(first, first + channels));
  const side = Math.max(SIDE, model.preprocessing.image_size), bitmap = await bitmapOf(file);
  const context = seen(bitmap, side), picture = context.getImageData(0, 0, side, side);
  bitmap.close();
  const colours = Uint8Array.from(atob(FACTS.turbo), (letter) => letter.charCodeAt(0));
  for (let y = 0, at = 0; y < side; y += 1) {
    for (let x = 0; x < side; x += 1, at += 4) {
      const place = 3 * Math.round(255 * between(cells, rows, columns, ((y + 0.5) * rows) / side - 0.5, ((x + 0.5) * columns) / side - 0.5));
      for (let channel = 0; channel < 3; channel += 1) picture.data[at + channel] = (1 - OPACITY) * picture.data[at + channel] + OPACITY * colours[place + channel];
    }
  }
  context.putImageData(picture, 0, 0);
  return context.canvas.convertToBlob({ type: "image/png" });
}

// Bilinear, the border repeated.
function between(cells, rows, columns, y, x) {
  const top = Math.max(0, Math.min(rows - 1, y)), left = Math.max(0, Math.min(columns - 1, x));
  const row = Math.floor(top), column = Math.floor(left), down = top - row, right = left - column;
  const at = (r, c) => cells[Math.min(r, rows - 1) * columns + Math.min(c, columns - 1)];
  const above = at(row, column) * (1 - right) + at(row, column + 1) * right;
  return above * (1 - down) + (at(row + 1, column) * (1 - right) + at(row + 1, column + 1) * right) * down;
}

// --- the live camera

let stream = null;

async function watch() {
  const video = find("video");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    notify(`The camera cannot be used: ${error.message}.`);
    return;
  }
  notify("");
  video.srcObject = stream;
  await video.play();
  find("live").hidden = false;
  find("watch").textContent = "Stop the camera";
  const { ood } = await ready;
  for (let label = ""; stream;) {
    const started = performance.now();
    const answer = answerOf(await run(video), ood);
    showLive(answer);
    if (answer.label !== label) say(`Camera: ${labelOf(answer)}.`);
    label = answer.label;
    await new Promise((done) => { setTimeout(done, Math.max(0, 1000 * FRAME - (performance.now() - started))); });
  }
}

function showLive(answer) {
  const entries = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]).slice(0, SHOWN);
  const rows = element("ul", "bars", ...entries.map(([name, probability]) => element("li", `bar ${answer.labels.includes(name) ? "chosen" : ""}`, ...makeBar(name, probability))));
  find("live-answer").replaceChildren(...makeHeading(answer), rows, element("p", "facts", `${Math.round(answer.milliseconds)} ms`));
}

function stopWatching() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  find("live").hidden = true;
  find("watch").textContent = "Use the camera live";
}

find("watch").addEventListener("click", () => (stream ? stopWatching() : watch()));
find("watch").hidden = !navigator.mediaDevices;

showModel(FACTS.model);
const ready = start();
ready.catch((error) => notify(`The network cannot be loaded: ${error.message}`));
if ("serviceWorker" in navigator && location.protocol.startsWith("http")) navigator.serviceWorker.register("service-worker.js");
