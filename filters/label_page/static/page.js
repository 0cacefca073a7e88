// The label page: one key, one decision, the next picture. A decision is written down in the browser first, shown as unsaved until
// the server has committed it, and can be taken back.

import { $, key, make, time, whole } from "./dom.js";
import { answersOf, GRID_KEYS, MARKS, OTHER_KEYS, WORDS } from "./answers.js";
import { Outbox } from "./outbox.js";
import { fillPanel } from "./panel.js";
import { Pictures } from "./pictures.js";
import { Stage } from "./stage.js";

const STRIP = 10;
const CHANGE = { skip: 0, report: 0, undo: -1 }; // of the number of answers, by a decision; any other: one more
const ARROWS = ["arrowleft", "arrowright", "arrowup", "arrowdown"];

let session, outbox, pictures, stage, tab;
let queue = []; // items that are ours and undecided; the first is (or the first ones are) on the stage
let onStage = []; // items that are shown now
const decided = new Set(); // items decided in this tab, for the server may still offer them
const returned = new Set(); // items taken back, which the server has not offered again yet
const uncounted = new Map(); // decision -> what it changes in the number of answers, until the server has counted it
let recent = []; // the last decisions: {key, item, answer, saved}
let progress = { total: 0, complete: 0, mine: 0, skipped: 0, held: 0, held_until: null };
let shownAt = 0, early = 0, earlyInAll = 0, began = Date.now(), counted = 0;
let pressed = 0; // when the key was pressed that still waits for its next picture
let claiming = false, again = false, ended = false, closed = false, restUntil = 0, pollTimer = 0, lastKey = 0;
let mail = { unsaved: 0, offline: false, refused: 0 };

start();

async function start() {
  let answer;
  try {
    answer = await fetch("/api/session");
  } catch {
    return retryStart();
  }
  if (answer.status === 401) return close();
  if (!answer.ok) return retryStart();
  session = await answer.json();
  tab = await tabName();
  const scope = `${session.filter}:${session.batch}:${session.person}`;
  outbox = new Outbox(scope, mailChanged, close);
  pictures = new Pictures(Math.min(1400, Math.ceil(Math.max(innerWidth, innerHeight) * devicePixelRatio / (session.grid ? 3 : 1))));
  stage = new Stage($("stage"), pictures, session);
  recent = session.recent.map((entry) => ({ ...entry, saved: true }));
  for (const decision of outbox.entries()) {
    uncounted.set(decision.key, CHANGE[decision.answer] ?? 1);
    remember(decision, false);
  }
  setUp();
  if (session.ended) return end();
  await outbox.send();
  await buryTabs();
  await claim();
}

// Tabs of this browser that are gone without a word give back what they held, once their decisions are saved.
async function buryTabs() {
  const known = JSON.parse(localStorage.getItem("winnow-tabs") ?? "[]");
  const alive = new Set((await navigator.locks.query()).held.map((lock) => lock.name));
  const living = known.filter((name) => alive.has(`winnow-tab-${name}`));
  if (!outbox.entries().length) for (const name of known) if (!living.includes(name)) await letGo(name);
  localStorage.setItem("winnow-tabs", JSON.stringify([...new Set([...(outbox.entries().length ? known : living), tab])]));
}

function letGo(name) {
  return fetch("/api/release", { method: "POST", keepalive: true, headers: { "content-type": "application/json" }, body: JSON.stringify({ tab: name }) }).catch(() => {});
}

function retryStart() {
  screen("No answer from the server", make("p", {}, "Trying again. What you decided is kept in this browser."));
  setTimeout(start, 1000);
}

// A tab keeps its name across a reload; a copy of a tab gets one of its own.
async function tabName() {
  let name = sessionStorage.getItem("winnow-tab") ?? crypto.randomUUID();
  for (;;) {
    const mine = await new Promise((tell) =>
      navigator.locks.request(`winnow-tab-${name}`, { ifAvailable: true }, (lock) => {
        tell(Boolean(lock));
        return lock ? new Promise(() => {}) : null;
      }));
    if (mine) break;
    name = crypto.randomUUID();
  }
  sessionStorage.setItem("winnow-tab", name);
  return name;
}

function setUp() {
  document.title = `${session.title}: ${session.mode}`;
  $("title").textContent = session.title;
  $("mode").textContent = session.mode;
  $("policy").textContent = session.policy;
  document.body.dataset.mode = session.mode;
  document.body.classList.toggle("blurred", session.blurred);
  $("caption").hidden = session.blind || session.mode === "adjudicate" || Boolean(session.grid);
  $("open-help").onclick = () => help();
  $("open-panel").onclick = () => togglePanel();
  addEventListener("keydown", press);
  addEventListener("pagehide", leave);
  addEventListener("pageshow", (event) => { if (event.persisted) claim(); });
  drawButtons();
  drawStrip();
}

function leave() {
  // Whatever was fetched ahead goes back to the others, unless decisions wait here: those images must not be given away.
  if (outbox.entries().length) return;
  letGo(tab);
}

// ---- items ----------------------------------------------------------------------------------------------------------------

async function claim() {
  if (claiming || ended || closed) return;
  claiming = true;
  clearTimeout(pollTimer);
  const asked = again;
  try {
    const answer = await fetch("/api/claim", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ tab, want: session.ahead, again: asked }),
    });
    if (answer.status === 401) return close();
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const body = await answer.json();
    claiming = false; // what follows looks at it: nothing is on its way any more
    receive(body, asked);
  } catch {
    pollTimer = setTimeout(claim, 1500);
    if (!queue.length) waiting();
  } finally {
    claiming = false;
  }
}

function receive(answer, asked) {
  progress = answer.progress;
  // The server counts what is committed; what it has not counted yet comes on top.
  for (const key of progress.last_keys) uncounted.delete(key);
  for (const change of uncounted.values()) progress.mine += change;
  if (answer.ended) return end();
  restUntil = answer.rest_until ?? 0;
  if (restUntil) return rest();
  const offered = new Map(answer.items.map((item) => [item.item, item]));
  for (const name of offered.keys()) returned.delete(name);
  // What we hold stays in its place; what others have meanwhile taken over goes, unless it is being looked at.
  queue = queue.filter((item) => offered.has(item.item) || returned.has(item.item) || onStage.includes(item));
  const held = new Set(queue.map((item) => item.item));
  for (const [name, item] of offered) if (!held.has(name) && !decided.has(name)) queue.push(item);
  if (asked && !queue.length) again = false;
  fetchAhead();
  drawState();
  if (!onStage.length) next();
}

function fetchAhead() {
  const wanted = new Set([...queue.map((item) => item.item), ...recent.map((entry) => entry.item)]);
  pictures.keep(wanted);
  for (const item of queue) for (const side of item.sides ?? ["one"]) pictures.get(item.item, side);
}

function next(pressedAt = pressed) {
  pressed = pressedAt;
  hideScreen();
  nudge("");
  early = 0;
  onStage = session.grid ? queue.slice(0, session.grid) : queue.slice(0, 1);
  if (!onStage.length) return waiting();
  const ready = session.grid ? stage.showGrid(onStage) : stage.show(onStage[0]);
  const shown = onStage[0];
  $("caption").textContent = session.grid ? "" : shown.caption || (sidesOf() ? "" : "(no caption)");
  $("reason").textContent = shown.reason ? `asked because: ${shown.reason}` : "";
  $("reason").hidden = !shown.reason || Boolean(session.grid);
  if (session.mode === "compare") drawButtons(shown.sides);
  shownAt = Infinity;
  ready.then(() => requestAnimationFrame(() => afterPaint(() => {
    if (onStage[0] !== shown) return;
    shownAt = performance.now();
    if (pressed) performance.measure("winnow-next-picture", { start: pressed, end: shownAt });
    pressed = 0;
  })));
}

function afterPaint(then) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = then;
  port2.postMessage(0);
}

// ---- decisions ------------------------------------------------------------------------------------------------------------

function decide(answer, pressedAt) {
  if (!onStage.length || stage.element.classList.contains("covered")) return;
  if (shownAt === Infinity && answer !== "skip" && answer !== "report") return nudge("The picture is not there yet.");
  if (answer !== "report" && performance.now() - shownAt < session.min_dwell_ms) {
    early++;
    earlyInAll++;
    return nudge(`Look for at least ${session.min_dwell_ms} ms: rare things are easily missed.`);
  }
  write(onStage[0], answer, stage.how());
  next(pressedAt);
  ahead();
}

function write(item, answer, how) {
  const seconds = Number.isFinite(shownAt) ? (performance.now() - shownAt) / 1000 : 0;
  const decision = { key: crypto.randomUUID(), item: item.item, answer, seconds: Math.max(0, seconds), early, decided_at: new Date().toISOString(), ...how };
  queue = queue.filter((other) => other !== item);
  decided.add(item.item);
  returned.delete(item.item);
  counted++;
  put(decision, CHANGE[answer] ?? 1);
  remember(decision, false, item);
}

function put(decision, change) {
  uncounted.set(decision.key, change);
  progress.mine = Math.max(0, progress.mine + change);
  outbox.put(decision);
}

function remember(decision, saved, item) {
  if (decision.answer === "undo") recent = recent.filter((entry) => entry.key !== decision.undoes);
  else if (!recent.some((entry) => entry.key === decision.key)) recent.push({ key: decision.key, item: decision.item, answer: decision.answer, saved, whole: item });
  decided[decision.answer === "undo" ? "delete" : "add"](decision.item);
  recent = recent.slice(-STRIP);
  drawStrip();
  drawState();
}

function submitGrid(pressedAt) {
  if (performance.now() - shownAt < 150) return; // the key that ended the screen before
  for (const { item, mark } of stage.tiles) write(item, mark ?? "skip", { ...stage.how(), flagged: false });
  onStage = [];
  next(pressedAt);
  ahead();
}

function ahead() {
  fetchAhead();
  if (queue.length <= session.ahead / 2) claim();
}

function takeBack(entry) {
  if (!entry || ended || restUntil) return;
  const change = entry.answer === "skip" ? 0 : -1;
  put({ key: crypto.randomUUID(), item: entry.item, answer: "undo", undoes: entry.key, seconds: 0, decided_at: new Date().toISOString() }, change);
  recent = recent.filter((other) => other !== entry);
  decided.delete(entry.item);
  returned.add(entry.item);
  const item = entry.whole ?? { item: entry.item, caption: "", reason: "", sides: sidesOf() };
  queue = [item, ...queue.filter((other) => other.item !== entry.item)];
  fetchAhead();
  drawStrip();
  drawState();
  next();
}

function sidesOf() {
  return ["pairs", "compare"].includes(session.mode) ? ["left", "right"] : undefined;
}

// ---- keys -----------------------------------------------------------------------------------------------------------------

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !session) return; // the browser's own shortcuts stay
  const name = event.key.toLowerCase();
  if ($("report").open) return reportKey(event, name);
  if ($("help").open) { if (name === "h" || name === "?") { $("help").close(); event.preventDefault(); } return; }
  const onButton = event.target.closest?.("button:not(.tile)");
  if (onButton && (name === " " || name === "enter")) return; // a button that has the focus is pressed
  if (act(name, event)) event.preventDefault();
}

function act(name, event) {
  if (name === "h" || name === "?") return help();
  if (name === "p") return togglePanel();
  if (name === "backspace") return event.repeat ? true : (takeBack(recent.at(-1)), true);
  if (ended || restUntil || !onStage.length) return false;
  if (name === "r" && event.shiftKey) return report();
  if (name === "b") return stage.toggleBlur(), true;
  if (session.grid) return gridKey(name, event);
  if (name === "z") return stage.zoom(onStage[0]), true;
  if (name === "c") return ($("caption").hidden = !$("caption").hidden), true;
  if (name === "f") return nudge(stage.toggleFlag() ? "Flagged: goes with your answer." : ""), true;
  if (ARROWS.includes(name) && stage.element.classList.contains("zoomed")) return stage.scroll(name), true;
  const found = answersOf(session.mode, onStage[0].sides).find(({ keys }) => keys.includes(name));
  if (!found) return false;
  if (!event.repeat) decide(found.answer, event.timeStamp); // a key held down is one answer
  return true;
}

function gridKey(name, event) {
  if (ARROWS.includes(name)) return stage.step(name), true;
  if (name === "enter") return event.repeat || submitGrid(event.timeStamp), true;
  if (name === "x" && event.shiftKey) return stage.markRest("no"), true;
  if (name === "a" || name === "y") return stage.mark("yes", true), true;
  if (name === "x" || name === "n") return stage.mark("no", true), true;
  if (name === " ") return stage.mark(undefined, true), true;
  return false;
}

// ---- report and stop ------------------------------------------------------------------------------------------------------

function report() {
  stage.element.classList.add("covered"); // first of all it is out of sight
  const items = session.grid ? [stage.tiles[stage.focused].item] : [onStage[0]];
  $("report").replaceChildren(
    make("h2", { id: "report-title" }, "Report this image and stop?"),
    make("p", {}, "For material that is illegal to have, such as sexual abuse of children. The image is hidden for everybody, nobody is asked about it again, and your session ends."),
    make("p", {}, "For images that merely break the policy, go back and answer “drop”."),
    make("div", { className: "choices" },
      make("button", { type: "button", className: "danger", onclick: () => reportNow(items) }, "Report and stop ", key("enter")),
      make("button", { type: "button", onclick: () => spare() }, "Back ", key("esc"))));
  $("report").oncancel = () => stage.element.classList.remove("covered");
  $("report").showModal();
  return true;
}

function reportKey(event, name) {
  if (name !== "enter" || event.repeat || event.target.textContent.startsWith("Back")) return;
  event.preventDefault();
  $("report").querySelector(".danger").click();
}

function spare() {
  $("report").close();
  stage.element.classList.remove("covered");
}

function reportNow(items) {
  $("report").close();
  for (const item of items) {
    write(item, "report", stage.how());
    recent = recent.filter((entry) => entry.item !== item.item);
  }
  end();
}

// ---- what is shown around -------------------------------------------------------------------------------------------------

function end() {
  ended = true;
  empty();
  screen("Your session has ended", make("p", { className: "words" }, session.report_instructions), make("p", { className: "faint" }, "To label again later, open your link."));
}

function close() {
  closed = true;
  screen("This link is no longer open", make("p", {}, "Open the link that winnow label printed. What you decided is kept in this browser and is sent then."));
}

function empty() {
  queue = [];
  onStage = [];
  stage?.clear();
  pictures?.keep(new Set(ended ? [] : recent.map((entry) => entry.item)));
  $("caption").textContent = $("reason").textContent = "";
  $("reason").hidden = true;
  drawStrip();
  drawState();
}

function rest() {
  empty();
  const left = Math.max(0, Math.ceil(restUntil - Date.now() / 1000));
  screen("Time for a break", make("p", {}, `Look at something far away. The next image comes at ${time(restUntil)}, in ${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}.`));
  clearTimeout(pollTimer);
  pollTimer = setTimeout(() => { if (left > 0) rest(); else { restUntil = 0; claim(); } }, 1000);
}

function waiting() {
  stage.clear();
  onStage = [];
  $("caption").textContent = $("reason").textContent = "";
  $("reason").hidden = true;
  clearTimeout(pollTimer);
  if (mail.offline || claiming) {
    screen(mail.offline ? "No answer from the server" : "Loading", make("p", {}, mail.unsaved ? `${whole(mail.unsaved)} decisions wait in this browser. They are sent when the server is back.` : "Trying again."));
    if (mail.offline) pollTimer = setTimeout(claim, 1500);
    return;
  }
  const skipped = progress.skipped
    ? make("p", {}, make("button", { type: "button", onclick: () => askAgain() }, `Show the ${whole(progress.skipped)} that you skipped once more`))
    : null;
  const held = progress.held ? make("p", {}, `${whole(progress.held)} are being looked at elsewhere; they come back at ${time(progress.held_until)} at the latest.`) : null;
  screen(progress.held ? "Nothing for you just now" : "All done", make("p", {}, `You have answered ${whole(progress.mine)} of ${whole(progress.total)}.`), held, skipped);
  pollTimer = setTimeout(claim, 4000);
}

function askAgain() {
  again = true;
  for (const entry of recent) if (entry.answer === "skip") decided.delete(entry.item);
  decided.clear();
  claim();
}

function screen(title, ...content) {
  $("screen").replaceChildren(make("h2", {}, title), ...content.filter(Boolean));
  $("screen").hidden = false;
  $("stage").hidden = true;
}

function hideScreen() {
  $("screen").hidden = true;
  $("stage").hidden = false;
}

function nudge(text) {
  $("nudge").textContent = text;
  return true;
}

function mailChanged(news) {
  mail = news;
  const saved = new Set(news.saved);
  let any = false;
  for (const entry of recent) if (saved.has(entry.key)) any = entry.saved = true;
  if (any) drawStrip();
  drawState();
}

function drawState() {
  if (!session) return;
  const { unsaved, offline, refused } = mail;
  $("saved").textContent = refused ? `${whole(refused)} refused` : unsaved ? `${whole(unsaved)} not saved${offline ? ", offline" : ""}` : "all saved";
  $("saved").className = refused ? "refused" : offline && unsaved ? "unsaved offline" : unsaved ? "unsaved" : "";
  $("count").textContent = `${whole(progress.mine)} of ${whole(progress.total)}${pace().perHour ? ` · ${whole(pace().perHour)} an hour` : ""}`;
  $("bar").style.width = `${progress.total ? (100 * progress.mine) / progress.total : 0}%`;
  if (!$("panel").hidden) fillPanel($("panel"), session, progress, pace());
}

function pace() {
  const minutes = (Date.now() - began) / 60000;
  return { count: counted, minutes, early: earlyInAll, perHour: counted >= 10 && minutes > 0.25 ? Math.round((60 * counted) / minutes) : 0 };
}

function drawButtons(sides) {
  $("buttons").replaceChildren(...(session.grid ? gridButtons() : answersOf(session.mode, sides).map(({ answer, label, shown, tone }) =>
    make("button", { type: "button", className: tone ?? "", onclick: (event) => { decide(answer, event.timeStamp); event.currentTarget.blur(); } }, `${label} `, key(shown)))));
}

function gridButtons() {
  const button = (label, shown, tone, onclick) => make("button", { type: "button", className: tone, onclick }, `${label} `, key(shown));
  return [
    button("Drop", "a", "yes", () => stage.mark("yes", true)),
    button("Keep", "x", "no", () => stage.mark("no", true)),
    button("Rest: keep", "shift X", "", () => stage.markRest("no")),
    button("Done", "enter", "go", (event) => submitGrid(event.timeStamp)),
  ];
}

function drawStrip() {
  if (!session) return;
  $("strip").replaceChildren(...recent.map((entry) => {
    const side = sidesOf() ? "left" : "one";
    const thumb = make("img", { alt: "", draggable: false, className: session.blurred ? "blurred" : "" });
    const known = pictures.loaded.get(`${entry.item}/${side}`);
    thumb.src = known?.url ?? `/picture/${entry.item}/${side}?size=160`;
    const button = make("button", { type: "button", className: `past ${entry.answer}${entry.saved ? "" : " unsaved"}`, onclick: () => takeBack(entry) }, thumb, make("span", {}, MARKS[entry.answer]));
    button.setAttribute("aria-label", `${WORDS[entry.answer]}${entry.saved ? "" : ", not saved yet"}: take back`);
    button.title = "Take back";
    return make("li", {}, button);
  }));
}

function togglePanel() {
  $("panel").hidden = !$("panel").hidden;
  $("open-panel").setAttribute("aria-expanded", String(!$("panel").hidden));
  drawState();
  return true;
}

function help() {
  const own = session.grid
    ? [["a", "drop"], ["x", "keep"], ...GRID_KEYS, ...OTHER_KEYS.filter(([name]) => !["z", "c", "f"].includes(name))]
    : [...answersOf(session.mode, onStage[0]?.sides).map(({ shown, label }) => [shown, label.toLowerCase()]), ...OTHER_KEYS];
  const rows = own.flatMap(([name, text]) => [make("dt", {}, ...name.split(" ").map(key)), make("dd", {}, text)]);
  const blind = session.blind ? "You see neither score nor reason nor anybody's answer. Unsure counts as “drop”: better said than guessed." : "";
  const careful = session.grid ? "A grid is for a first look: its answers never enter a certificate." : "";
  $("help").replaceChildren(
    make("h2", { id: "help-title" }, "Keys"),
    make("dl", {}, ...rows),
    make("h2", {}, "Policy"),
    make("p", { className: "policy" }, session.policy),
    blind || careful ? make("p", { className: "faint" }, blind || careful) : "",
    make("div", { className: "choices" }, make("button", { type: "button", onclick: () => $("help").close() }, "Back ", key("esc"))));
  $("help").showModal();
  return true;
}
