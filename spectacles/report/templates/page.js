// What the page shows. What answers is a back end, the script after this one: it calls showModel, sets `lanes`, and has
//   predict(file, tell) -> the answer of POST /predict; tell(text) says what it waits for
//   explain(file, name, tell) -> a PNG as a Blob: the saliency map for a class
// Where they throw an error that has passed by another time, it is `retriable`.
const SHOWN = 8; // classes with a bar before the rest is folded away
const FIT = { squash: "fill", crop: "contain", pad: "cover" }; // lays the square that the model sees over its part of the photo
const find = (id) => document.getElementById(id);
const percent = (p) => (p > 0.999 && p < 1 ? "> 99.9" : p < 0.001 && p > 0 ? "< 0.1" : (100 * p).toFixed(1)) + " %";

function element(tag, className, ...content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...content);
  return node;
}

function button(className, action, ...content) {
  const node = element("button", className, ...content);
  node.type = "button";
  node.addEventListener("click", action);
  return node;
}

function say(text) {
  find("said").append(element("p", "", text));
  if (find("said").childElementCount > 20) find("said").firstChild.remove();
}

function notify(text) {
  if (text && find("notice").textContent !== text) say(text);
  find("notice").textContent = text;
  find("notice").hidden = !text;
}

// --- the model

let model = { multi_label: false, classes: [], label_column: "", preprocessing: {} };

// A bare number as a label is about something: the labels' column says what.
const inWords = (name) => (!model.multi_label && model.label_column && Number.isFinite(Number(name)) ? `${model.label_column}: ${name}` : name);
const labelOf = (answer) => (model.multi_label ? answer.labels.join(", ") || "none of the labels" : inWords(answer.label));

function threshold(name) {
  const place = model.classes.indexOf(name);
  if (model.multi_label) return model.label_thresholds[place];
  return model.threshold == null ? undefined : place ? model.threshold : 1 - model.threshold;
}

function showModel(given) {
  model = given;
  const few = model.classes.length <= SHOWN;
  const names = new Intl.ListFormat("en", { type: model.multi_label ? "disjunction" : "conjunction" }).format(model.classes.map(inWords));
  const marks = model.multi_label || model.threshold != null ? " A mark on a bar shows from where on it counts." : "";
  find("about").textContent = (model.multi_label
    ? `The model says which of these a photo shows, if any: ${few ? names : `${model.classes.length} labels`}.`
    : `The model chooses between ${few ? names : `${model.classes.length} classes`}.`) + marks;
  find("card").textContent = `Model ${model.model_id}: ${model.backbone}, ${model.metric.replaceAll("_", " ")} ${model.metric_value.toFixed(3)} on validation data.`;
}

// --- one photo

function makeCard(file) {
  const card = { file, node: element("li", "result"), view: element("div", "view"), caption: element("figcaption"), text: element("div"),
    overlays: new Map(), rows: new Map(), wanted: null, failure: "", state: "waiting" };
  const picture = element("img");
  picture.alt = "";
  picture.decoding = "async";
  picture.onload = () => {
    card.view.style.setProperty("--ratio", Math.min(4, Math.max(0.25, picture.naturalWidth / picture.naturalHeight)));
    URL.revokeObjectURL(picture.src);
  };
  picture.onerror = () => picture.replaceWith("no preview");
  picture.src = URL.createObjectURL(file);
  card.button = button("", () => look(card, card.wanted ?? card.about), "Where does it look?");
  card.view.append(picture);
  card.caption.hidden = true;
  card.node.tabIndex = -1;
  card.node.append(element("figure", "", card.view, card.caption), card.text);
  showState(card, "Waiting for its turn ...");
  return card;
}

function showState(card, text) {
  card.text.replaceChildren(element("p", "file", card.file.name), element("p", "waiting", text));
}

function showRejection(card, error) {
  card.text.lastChild.replaceWith(element("p", "error", error.message));
  if (error.retriable) card.text.append(button("", () => retry(card), "Try again"));
}

function showAnswer(card, answer) {
  const entries = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  const rest = entries.slice(SHOWN);
  [card.about] = entries.find(([name]) => answer.labels.includes(name)) ?? entries[0];
  card.model = answer.model_id;
  card.rows.clear();
  card.text.replaceChildren(element("p", "file", card.file.name), ...makeHeading(answer), makeBars(card, entries.slice(0, SHOWN), answer.labels));
  if (rest.length) {
    const folded = element("details", "", element("summary", "", `${rest.length} more`));
    folded.addEventListener("toggle", () => folded.append(makeBars(card, rest, answer.labels)), { once: true });
    card.text.append(folded);
  }
  const facts = [`${Math.round(answer.milliseconds)} ms`, ...answer.conversions].join(" · ");
  card.text.append(element("div", "more", card.button, element("p", "facts", facts)));
}

function makeHeading(answer) {
  if (answer.abstain_reason === "out_of_distribution") {
    return [element("p", "answer", "Unlike the training photos"), element("p", "note",
      `The model abstains: it did not learn from photos like this one. Its best guess is ${labelOf(answer)}.`)];
  }
  if (answer.abstain_reason === "low_confidence") {
    const needed = model.confidence_threshold <= 1 ? `: ${percent(answer.confidence)}, below the ${percent(model.confidence_threshold)} that it needs` : "";
    return [element("p", "answer", "Not confident enough"), element("p", "note",
      `The model abstains${needed}. Its best guess is ${labelOf(answer)}.`)];
  }
  if (!model.multi_label || !answer.labels.length) return [element("p", "answer", labelOf(answer))];
  const chips = element("ul", "answer chips", ...answer.labels.map((name) => element("li", "", name)));
  chips.setAttribute("role", "list");
  return [chips];
}

// A class, its probability and a bar with a mark at its threshold.
function makeBar(name, probability) {
  const fill = element("div", "fill"), track = element("div", "track", fill), bound = threshold(name);
  fill.style.width = `${100 * probability}%`;
  if (bound !== undefined) {
    track.append(element("div", "mark"));
    track.lastChild.style.left = `${100 * bound}%`;
  }
  return [element("span", "", inWords(name)), element("data", "", percent(probability)), track];
}

function makeBars(card, entries, chosen) {
  const list = element("ul", "bars", ...entries.map(([name, probability]) => {
    const row = button(chosen.includes(name) ? "chosen" : "", () => look(card, name), ...makeBar(name, probability));
    row.title = `Show the saliency map for ${inWords(name)}`;
    row.setAttribute("aria-pressed", card.wanted === name);
    card.rows.set(name, row);
    return element("li", "", row);
  }));
  list.setAttribute("role", "list");
  return list;
}

// --- where it looks

// Shows the saliency map for a class, or hides it.
async function look(card, name) {
  if (card.model !== model.model_id) return retry(card, "The model has changed: looking again ...");
  const { overlays } = card;
  card.wanted = card.wanted === name ? null : name;
  showOverlay(card);
  if (card.wanted === null || overlays.has(name)) return;
  try {
    const map = await explain(card.file, name, (text) => {
      if (card.wanted === name) card.caption.textContent = text;
    });
    overlays.set(name, await makeOverlay(map, name));
    if (card.wanted === name) say(`${card.file.name}: the picture shows the saliency map for ${inWords(name)}.`);
  } catch (error) {
    if (card.wanted !== name) return;
    card.wanted = null;
    card.failure = error.message;
    say(error.message);
  }
  showOverlay(card);
}

async function makeOverlay(map, name) {
  const image = element("img", "saliency");
  image.alt = `saliency map for ${inWords(name)}`;
  image.style.objectFit = FIT[model.preprocessing.resize];
  image.src = URL.createObjectURL(map);
  await image.decode();
  URL.revokeObjectURL(image.src);
  return image;
}

function showOverlay(card) {
  const image = card.overlays.get(card.wanted), name = card.wanted === null ? "" : inWords(card.wanted);
  card.view.querySelector(".saliency")?.remove();
  if (image) card.view.append(image);
  card.node.classList.toggle("looking", Boolean(image));
  card.button.textContent = card.wanted === null ? "Where does it look?" : "Show the photo alone";
  for (const [each, row] of card.rows) row.setAttribute("aria-pressed", each === card.wanted);
  if (image) card.caption.replaceChildren(element("span", "scale"), `Saliency for ${name} (dark red: highest). Choose a bar for another class.`);
  else card.caption.textContent = card.wanted === null ? card.failure : "Looking at it ...";
  card.caption.className = card.failure ? "error" : "";
  card.caption.hidden = !card.caption.textContent;
  card.failure = "";
}

// --- many photos

let cards = [];
const queue = [];
let running = 0;
let lanes = 1; // how many may run now

function work() {
  while (running < lanes && queue.length) {
    running += 1;
    classify(queue.shift()).finally(() => {
      running -= 1;
      work();
    });
  }
  showTally();
}

function showTally() {
  const all = cards.length, open = cards.filter((card) => card.state === "waiting").length, rejected = cards.filter((card) => card.state === "rejected").length;
  find("count").textContent = (open ? `${all - open} of ${all} photos done` : all === 1 ? "1 photo" : `${all} photos`) + (rejected ? `, ${rejected} without an answer` : "");
  find("tally").hidden = !all;
  document.body.classList.toggle("started", all > 0);
}

async function classify(card) {
  if (!cards.includes(card)) return;
  try {
    const answer = await predict(card.file, (text) => showState(card, text));
    showAnswer(card, answer);
    card.state = "answered";
    say(`${card.file.name}: ${labelOf(answer)}, ${percent(answer.confidence)}${answer.abstained ? "; the model abstains" : ""}.`);
  } catch (error) {
    showRejection(card, error);
    card.state = "rejected";
    say(`${card.file.name}: ${error.message}`);
  }
}

function retry(card, text = "Waiting for its turn ...") {
  card.node.focus(); // the button goes away
  card.wanted = null;
  card.overlays = new Map(); // of the model that answers now
  showOverlay(card);
  card.state = "waiting";
  showState(card, text);
  queue.push(card);
  work();
}

function take(files) {
  const added = Array.from(files, makeCard);
  cards.push(...added);
  queue.push(...added);
  find("results").prepend(...added.map((card) => card.node));
  work();
}

function clear() {
  cards = [];
  queue.length = 0;
  find("results").replaceChildren();
  work();
  find("choose").focus();
}

for (const [opener, input] of [["choose", "chooser"], ["shoot", "camera"]]) {
  find(opener).addEventListener("click", () => find(input).click());
  find(input).addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // so that the same photo can be chosen again
  });
}
find("drop").addEventListener("click", (event) => {
  if (!event.target.closest("button, input")) find("chooser").click();
});
find("clear").addEventListener("click", clear);
document.addEventListener("paste", (event) => take(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
