"use strict";
const find = (id) => document.getElementById(id);
const data = JSON.parse(find("data").textContent);
const { items, classes, multi_label: multiLabel } = data; // multiLabel: labels of an image are joined by "|"
const STORE = `spectacles review ${data.key}`;
const MAX_OPTIONS = 50; // classes listed at once; typing finds the others
const WORDS = new Map([["changed", "changed"], ["confirmed", "kept"], ["removed", "removed"]]);

const NONE = "none";
// A label called "none", and "|" or a backslash in a label, follow a backslash (spectacles/data/label_text.py).
const escaped = (name) => (name === NONE ? `\\${NONE}` : name.replace(/[|\\]/g, "\\$&"));
const unescaped = (text) => (text === escaped(NONE) ? NONE : text.replace(/\\([|\\])/g, "$1"));
const parts = (label) => (label === NONE ? [] : (label.match(/(?:\\.|[^|])+/gs) ?? []).map(unescaped));
const join = (names) => classes.filter((name) => names.has(name)).map(escaped).join("|") || NONE;
const isLabel = (label) => (multiLabel ? typeof label === "string" && label === join(new Set(parts(label))) : classes.includes(label));
const isNumeric = (names) => names.length && names.every((name) => Number.isFinite(Number(name)));

// "cat, dog"; numbers mean nothing without the name of their column: "glasses: 1".
function labelText(label) {
  const names = multiLabel ? parts(label) : [label];
  const text = names.join(", ") || NONE;
  return data.question && isNumeric(names) ? `${data.question}: ${text}` : text;
}

// The suggested change: "add dog; remove cat, face".
function difference(item) {
  const [given, suggested] = [parts(item.label), parts(item.suggested)];
  const more = suggested.filter((name) => !given.includes(name)).join(", ");
  const less = given.filter((name) => !suggested.includes(name)).join(", ");
  return [more && `add ${more}`, less && `remove ${less}`].filter(Boolean).join("; ");
}

const hasDoubt = (item, label) => parts(label).includes(item.doubt);
const agrees = (item, label) => (multiLabel ? hasDoubt(item, label) === hasDoubt(item, item.suggested) : label === item.suggested);
const percent = (p) => (p > 0.999 && p < 1 ? "> 99.9" : p < 0.001 && p > 0 ? "< 0.1" : (100 * p).toFixed(1)) + " %";

function element(tag, className, ...content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...content);
  return node;
}

function picture(source, alt) {
  const image = element("img");
  image.alt = alt;
  image.decoding = "async";
  image.loading = "lazy";
  image.onerror = () => image.replaceWith(element("span", "quiet", "cannot be shown"));
  image.src = source;
  return image;
}

const known = new Map(items.map((item) => [item.file, item]));
const decisions = new Map(); // file -> {decision, label}
const undoStack = []; // [place, the decision before], the newest last
let at = 0;
let saved = true;

function load() {
  try {
    for (const [file, decision, label] of JSON.parse(localStorage.getItem(STORE) ?? "[]")) {
      if (known.has(file) && WORDS.has(decision) && (decision === "removed" || isLabel(label))) {
        decisions.set(file, { decision, label });
      }
    }
  } catch {
    // written by another version, or no storage at all: start afresh
  }
}

function store() {
  try {
    const rows = [...decisions].map(([file, one]) => [file, one.decision, one.label]);
    localStorage.setItem(STORE, JSON.stringify(rows));
  } catch {
    notify("This browser cannot store your decisions: save label_fixes.csv before closing the page.");
  }
}

function notify(...content) {
  find("notice").replaceChildren(...content);
  find("notice").hidden = content.length === 0;
}

// For screen readers.
function announce(text) {
  find("announcement").textContent = text;
}

const isOpen = (item) => !decisions.has(item.file);

function nextOpen(from) {
  for (let step = 1; step <= items.length; step += 1) {
    const place = (from + step) % items.length;
    if (isOpen(items[place])) return place;
  }
  return -1;
}

function describe(item) {
  const one = decisions.get(item.file);
  if (!one) return "not reviewed";
  return one.decision === "removed" ? "removed" : `${WORDS.get(one.decision)}: ${labelText(one.label)}`;
}

function decide(label) {
  const item = items[at];
  if (!item) return;
  undoStack.push([at, decisions.get(item.file)]);
  decisions.delete(item.file); // so that the file lists decisions in the order they were made
  const decision = label === null ? "removed" : label === item.label ? "confirmed" : "changed";
  decisions.set(item.file, { decision, label: label ?? "" });
  saved = false;
  store();
  announce(`${item.file} ${describe(item)}.`);
  const place = nextOpen(at);
  if (place >= 0) go(place);
  else finish();
}

function finish() {
  show();
  notify(element("p", "", "All labels are reviewed. Save the file, then train again with it."));
  find("save").focus();
}

function undo() {
  const last = undoStack.pop();
  if (!last) return;
  const [place, before] = last;
  if (before) decisions.set(items[place].file, before);
  else decisions.delete(items[place].file);
  saved = false;
  store();
  notify();
  announce("Undone.");
  go(place);
}

function go(place) {
  at = Math.max(0, Math.min(items.length - 1, place));
  find("one").hidden = false;
  find("all").hidden = true;
  show();
}

function showBars(item) {
  const rows = [["given", item.label, item.given], ["suggested", item.suggested, item.probability]];
  find("bars").replaceChildren(...rows.map(([name, label, probability]) => {
    const meter = element("meter");
    meter.max = 1;
    meter.value = probability;
    meter.ariaHidden = "true";
    const about = multiLabel ? `${hasDoubt(item, label) ? "with" : "without"} ${item.doubt}: ` : "";
    const value = element("data", "", about + percent(probability));
    return element("div", "", element("dt", "", name), element("dd", "", labelText(label)), value, meter);
  }));
}

function showNear(item) {
  find("near").replaceChildren(...item.near.map(([place, similarity]) => {
    const one = data.near[place];
    const label = element("b", "", labelText(one.label));
    const node = element("li", agrees(item, one.label) ? "suggested" : "", picture(one.photo, ""), label);
    node.append(element("br"), element("small", "", `${Math.round(100 * Math.max(0, similarity))} % similar`));
    node.title = one.file;
    return node;
  }));
}

function show() {
  const count = decisions.size;
  find("bar").max = Math.max(1, items.length);
  find("bar").value = count;
  find("about").textContent = `${count} of ${items.length} reviewed${saved || !count ? "" : ", not saved"} · run ${data.run}`;
  find("save").disabled = count === 0;
  find("undo").disabled = undoStack.length === 0;
  const listed = !find("all").hidden;
  find("view").firstElementChild.textContent = listed ? "One by one" : "List";
  if (listed) showAll();
  const item = items[at];
  find("view").disabled = !item;
  if (!item) {
    find("one").hidden = true;
    notify("No label looks wrong: nothing to review.");
    return;
  }
  const one = decisions.get(item.file);
  find("place").textContent = `Photo ${at + 1} of ${items.length}: ${describe(item)}`;
  find("photo").replaceChildren(picture(item.photo, `photo ${item.file}`));
  find("file").textContent = `${item.file} (${item.split})`;
  showBars(item);
  showNear(item);
  find("keep").replaceChildren(`Keep ${labelText(item.label)} `, element("kbd", "", "K"));
  const change = multiLabel ? `Change: ${difference(item)}` : `Change to ${labelText(item.suggested)}`;
  find("change").replaceChildren(`${change} `, element("kbd", "", "C"));
  find("keep").classList.toggle("chosen", one?.decision === "confirmed");
  find("change").classList.toggle("chosen", one?.decision === "changed" && one.label === item.suggested);
  find("other").classList.toggle("chosen", one?.decision === "changed" && one.label !== item.suggested);
  find("remove").classList.toggle("chosen", one?.decision === "removed");
  find("other").hidden = !multiLabel && classes.length < 3;
  find("actions").classList.toggle("two", find("other").hidden);
  find("open").disabled = nextOpen(at) < 0;
}

function showAll() {
  find("grid").replaceChildren(...items.map((item, place) => {
    const labels = multiLabel ? `${labelText(item.label)}: ${difference(item)}?` : `${labelText(item.label)} → ${labelText(item.suggested)}?`;
    const state = element("span", isOpen(item) ? "quiet" : "", describe(item));
    const button = element("button", isOpen(item) ? "" : "chosen", picture(item.photo, ""));
    button.append(element("span", "quiet", item.file), element("span", "", labels), state);
    button.type = "button";
    button.addEventListener("click", () => {
      go(place);
      find("place").focus();
    });
    return element("li", "", button);
  }));
}

function toggleList() {
  const listed = find("all").hidden;
  find("all").hidden = !listed;
  find("one").hidden = listed;
  show();
}

function showOptions() {
  const query = find("search").value.trim().toLowerCase();
  const matches = classes.filter((name) => labelText(name).toLowerCase().includes(query));
  const isFirst = (name) => Number(name.toLowerCase() === query || (!few && !query && selected.has(name)));
  matches.sort((a, b) => isFirst(b) - isFirst(a));
  find("options").replaceChildren(...matches.slice(0, MAX_OPTIONS).map((name) => {
    if (multiLabel) return checkbox(name);
    const button = element("button", name === items[at].label ? "chosen" : "", labelText(name));
    const digit = classes.indexOf(name) + 1;
    if (digit < 10) button.append(" ", element("kbd", "", String(digit)));
    button.type = "button";
    button.addEventListener("click", () => choose(name));
    return element("li", "", button);
  }));
  if (matches.length > MAX_OPTIONS) find("options").append(element("li", "quiet", `${matches.length - MAX_OPTIONS} more: type to find them`));
  return matches;
}

function choose(name) {
  find("choice").close();
  decide(name);
}

const selected = new Set(); // labels selected in the dialog
const few = classes.length < 10; // each has a digit key

function checkbox(name) {
  const box = element("input");
  box.type = "checkbox";
  box.checked = selected.has(name);
  box.addEventListener("change", () => toggle(name));
  const label = element("label", "", box, element("span", "", name));
  if (name === items[at].doubt) label.append(element("small", "", "doubtful"));
  if (few) label.append(element("kbd", "", String(classes.indexOf(name) + 1)));
  return element("li", "", label);
}

function toggle(name) {
  if (!selected.delete(name)) selected.add(name);
  for (const box of find("options").querySelectorAll("input")) {
    box.checked = selected.has(box.nextSibling.textContent);
  }
  showSelected();
}

function showSelected() {
  const label = labelText(join(selected));
  find("chosen").textContent = `Selected: ${label}`;
  find("apply").replaceChildren(`Set to ${label} `, element("kbd", "", "Enter"));
}

function openChoice() {
  find("search").value = "";
  selected.clear();
  if (multiLabel) {
    for (const name of parts(decisions.get(items[at].file)?.label || items[at].label)) selected.add(name);
    showSelected();
  }
  showOptions();
  find("choice").showModal();
  if (find("search").hidden) find("apply").focus();
  else find("search").focus();
}

function apply() {
  choose(join(selected));
}

const quoted = (text) => `"${text.replaceAll('"', '""')}"`;

function table() {
  // Decisions of earlier reviews come first: the file holds all of them, in the order in which they are applied.
  const rows = [...data.earlier];
  for (const [file, one] of decisions) rows.push([file, known.get(file).label, one.label, one.decision, data.run]);
  const lines = rows.map((row) => row.map(quoted).join(","));
  return ["file,given_label,fixed_label,decision,run", ...lines, ""].join("\r\n");
}

function save() {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv;charset=utf-8" }));
  link.download = "label_fixes.csv";
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = true;
  show();
  notify(element("p", "", "Saved as label_fixes.csv. To train again with it and compare before and after:"), element("code", "", data.command));
}

const KEYS = new Map([
  ["k", () => find("keep").click()], ["c", () => find("change").click()], ["r", () => find("remove").click()],
  ["o", () => find("other").hidden || find("other").click()], ["/", () => find("other").hidden || find("other").click()],
  ["u", undo], ["n", () => find("open").click()], ["l", toggleList], ["d", () => find("save").click()],
  ["arrowleft", () => find("back").click()], ["arrowright", () => find("skip").click()],
]);
const STEPS = new Set(["arrowleft", "arrowright"]); // held down, these keys repeat; all others act once
const IN_LIST = new Set(["l", "d", "u"]);

document.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  const digit = /^[1-9]$/.test(key) && Number(key) <= classes.length && (!multiLabel || few) ? classes[Number(key) - 1] : null;
  if (multiLabel && digit && find("choice").open && !event.repeat) {
    toggle(digit);
    event.preventDefault();
  }
  if (!items.length || find("choice").open || event.altKey || (event.repeat && !STEPS.has(key))) return;
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z") return;
    event.preventDefault();
    undo();
    return;
  }
  const listed = !find("all").hidden;
  if (digit !== null && !listed) {
    if (multiLabel) openChoice();
    if (multiLabel) toggle(digit);
    else decide(digit);
  } else if (KEYS.has(key) && (!listed || IN_LIST.has(key))) KEYS.get(key)();
  else return;
  event.preventDefault();
});

find("keep").addEventListener("click", () => decide(items[at].label));
find("change").addEventListener("click", () => decide(items[at].suggested));
find("remove").addEventListener("click", () => decide(null));
find("other").addEventListener("click", openChoice);
find("back").addEventListener("click", () => go(at - 1));
find("skip").addEventListener("click", () => go(at + 1));
find("open").addEventListener("click", () => go(nextOpen(at)));
find("undo").addEventListener("click", undo);
find("view").addEventListener("click", toggleList);
find("save").addEventListener("click", save);
find("search").addEventListener("input", showOptions);
find("cancel").addEventListener("click", () => find("choice").close());
find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = find("search").value.trim();
  const [first] = showOptions();
  if (multiLabel && !query) apply();
  else if (multiLabel && first !== undefined) {
    find("search").value = "";
    toggle(first);
    showOptions();
  } else if (!multiLabel && first !== undefined) choose(first);
});
if (multiLabel) {
  find("other").firstElementChild.textContent = "Other labels";
  find("question").textContent = "Which labels does it show?";
  find("search").hidden = few;
  find("apply").hidden = false;
}

find("more").textContent = data.more ? `${data.more} more ${multiLabel ? "photos have doubtful labels" : "labels are doubtful"}; the next review lists them.` : "";
load();
at = Math.max(0, nextOpen(-1));
show();
