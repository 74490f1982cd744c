// The back end of the server's page: the server answers.

const MAX_BYTES = 32 * 1024 * 1024 - 4096; // the server's limit less the form around a file: what is larger need not travel
const AT_ONCE = 4; // photos on their way: the server computes together what is there
const TRIES = 6;
const PATIENCE = 60; // seconds: where the server asks for more, a person decides
const OFFLINE = 0, LOCKED = 401, TOO_MANY = 429, BUSY = 503;
const pause = (seconds) => new Promise((done) => { setTimeout(done, 1000 * seconds); });

const STORE = "spectacles key";
let key = keepKey("");

// In this tab only; a browser that stores nothing keeps it as long as the page is open.
function keepKey(given) {
  try {
    if (given) sessionStorage.setItem(STORE, given);
    return sessionStorage.getItem(STORE) ?? "";
  } catch {
    return given;
  }
}

function rejection(status, detail, seconds = 0) {
  const retriable = [OFFLINE, BUSY, TOO_MANY].includes(status) || status >= 500;
  return Object.assign(new Error(detail), { status, seconds, retriable });
}

// JSON, or a Blob where the answer is a picture.
async function ask(path, form) {
  let response, body;
  try {
    response = await fetch(path, { method: form ? "POST" : "GET", body: form, headers: key ? { Authorization: `Bearer ${key}` } : {} });
    if (response.ok && response.headers.get("Content-Type") === "image/png") return await response.blob();
    body = await response.text();
  } catch {
    throw rejection(OFFLINE, "The server cannot be reached: is it still running?");
  }
  try {
    body = JSON.parse(body);
  } catch {
    throw rejection(response.status, `The server failed (HTTP ${response.status}): its log says why.`);
  }
  if (!response.ok) throw rejection(response.status, String(body.detail), Number(response.headers.get("Retry-After")));
  return body;
}

let meeting = false;
let connected = null; // the promise of a server that is ready and lets this page ask

function reconnect() {
  if (!meeting) connected = meet();
  return connected;
}

async function meet() {
  for (meeting = true; meeting;) {
    try {
      await ask("health/ready");
      showModel(await ask("model"));
      hideLock();
      meeting = false;
    } catch (error) {
      if (error.status === LOCKED) await unlock();
      else {
        notify(`${error.status === OFFLINE ? "" : "Not ready: "}${error.message} This page keeps trying.`);
        await pause(Math.min(error.seconds || 1, PATIENCE));
      }
    }
  }
  notify("");
}

// Until a person has given a key; whether it is a good one shows when it is used.
function unlock() {
  notify("");
  find("locked").hidden = false;
  find("kept").textContent = key ? "The server does not know this key." : "It is kept in this tab only, until that is closed.";
  say(key ? find("kept").textContent : "The server asks for a key.");
  return new Promise((done) => {
    find("locked").addEventListener("submit", (event) => {
      event.preventDefault();
      key = keepKey(find("key").value);
      done();
    }, { once: true });
  });
}

function hideLock() {
  if (find("locked").hidden) return;
  const held = find("locked").contains(document.activeElement);
  find("locked").hidden = true;
  find("key").value = "";
  if (held) find("choose").focus();
}

// An answer in spite of a server that is busy, restarts or asks for a key meanwhile.
async function insist(path, form, tell) {
  for (let tries = 1; ; tries += 1) {
    if (meeting) tell("Waiting for the server ...");
    await connected;
    tell("Looking at it ...");
    try {
      const answer = await ask(path, form);
      if (tries === 1) lanes = Math.min(AT_ONCE, lanes + 1);
      return answer;
    } catch (error) {
      const busy = error.status === BUSY || error.status === TOO_MANY;
      if (tries === TRIES || error.seconds > PATIENCE || !(busy || error.status === OFFLINE || error.status === LOCKED)) throw error;
      lanes = 1;
      if (!busy) reconnect();
      else {
        const seconds = error.seconds || 1;
        tell(`The server is busy: trying again in ${seconds} s ...`);
        await pause(seconds);
      }
    }
  }
}

async function predict(file, tell) {
  if (file.size > MAX_BYTES) throw rejection(413, "The file is larger than 32 MiB: send a smaller one.");
  const form = new FormData();
  form.append("file", file);
  const answer = await insist("predict", form, tell);
  if (answer.model_id !== model.model_id) await reconnect(); // another model answers by now
  return answer;
}

async function explain(file, name, tell) {
  const form = new FormData();
  form.append("file", file);
  form.append("label", name);
  try {
    return await insist("explain", form, tell);
  } catch (error) {
    if (error.status !== 422) throw error;
    form.append("method", "occlusion"); // Grad-CAM cannot look into every network; this can
    return insist("explain", form, tell);
  }
}

lanes = AT_ONCE;
reconnect();
