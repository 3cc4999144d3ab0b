// The page: a conversation, kept in memory only, and the controls around it.

import { answer, key, models } from "./api.js";
import { Attachments } from "./attachments.js";
import { Figures } from "./figures.js";
import { Answer, Question } from "./turns.js";

const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const attached = new Attachments(at.files, notify);
const figures = new Figures(at.figures.tBodies[0]);

const ABILITIES = {
  image: "sees pictures",
  video: "watches clips",
  audio: "hears sound",
  draw: "draws",
  film: "films",
  thinking: "thinks",
};

let known = []; // models, as the API lists them
let turns = []; // Questions and Answers in their order
let running = null; // ends the answer in the making
let following = true; // the end of the conversation is kept in sight
let draft = null; // what was being written before the last message was taken up again to be changed

// -- Models --------------------------------------------------------------------------------------------------------------------

async function loadModels() {
  notify("");
  try {
    known = await models();
  } catch (error) {
    at.greeting.textContent = "Not connected.";
    notify(error.message, loadModels);
    if (error.status === 401) askForKey();
    return;
  }
  at.model.replaceChildren(...known.map(({ id }) => new Option(id)));
  chooseModel();
}

function chooseModel() {
  const { id, can, thinking } = chosen();
  at.greeting.textContent = id ? `Say something to ${id}.` : "This server has no models.";
  at.abilities.textContent = can ? abilities(can) : "";
  at.pick.accept = attached.allow(can);
  at.attach.hidden = can !== null && !at.pick.accept;
  at.thinking.disabled = thinking !== null || (can !== null && !can.has("thinking"));
  at.thinking.checked = thinking ?? (at.thinking.checked && !at.thinking.disabled);
  at.thinking.indeterminate = can === null; // not known: nothing is asked until somebody moves the switch
}

const chosen = () => known.find(({ id }) => id === at.model.value) ?? { can: null, thinking: null };

/** What a model can do besides text, in a line. */
function abilities(can) {
  const found = Object.keys(ABILITIES).filter((each) => can.has(each)).map((each) => ABILITIES[each]);
  return found.length ? `It ${new Intl.ListFormat("en-GB").format(found)}.` : "";
}

// -- The conversation ----------------------------------------------------------------------------------------------------------

function send() {
  const text = at.text.value.trim();
  if (running || !at.model.value || !(text || attached.files.length)) return;
  if (draft) turns.splice(turns.findLastIndex(isQuestion)).forEach(({ node }) => node.remove());
  const question = new Question(text, attached.files, edit);
  draft = null;
  write("", []);
  notify("");
  add(question);
  ask();
}

const isQuestion = (turn) => turn instanceof Question;

function add(turn) {
  turns.push(turn);
  at.empty.hidden = true;
  at.turns.append(turn.node);
  following = true;
}

/** Have the model answer what stands in the conversation. */
async function ask() {
  const body = { model: at.model.value, messages: messages(), ...options() };
  const made = new Answer(body.model, turns.at(-1).text, retry);
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  let first, usage, finish;
  add(made);
  run(new AbortController());
  try {
    for await (const chunk of answer(body, running.signal)) {
      const { delta = {}, finish_reason } = chunk.choices?.[0] ?? {};
      if (take(made, delta)) first ??= seconds();
      finish = finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    made.end(finish === "length" ? "Cut off: the answer became too long." : made.parts.length ? "" : "The model said nothing.");
    announce(made.text || "The answer is there.");
  } catch (error) {
    if (error.name === "AbortError") made.end("Stopped.");
    else made.end(error.message, true);
    if (error.status === 401) askForKey();
  }
  if ((usage || first) && turns.includes(made)) figures.add(usage, { first, all: seconds() });
  run(null);
}

/** Add a piece to an answer; whether there was anything in it. */
function take(made, { reasoning, reasoning_content = reasoning, content, drawing, images }) {
  if (reasoning_content) made.think(reasoning_content); // other servers behind this one may call it reasoning
  if (content) made.say(content);
  if (drawing) made.begin(drawing.grid);
  for (const image of images ?? []) made.draw(image);
  return Boolean(reasoning_content || content || drawing || images?.length);
}

function messages() {
  const system = at.system.value.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...turns.map((turn) => turn.message()).filter(Boolean)];
}

/** The settings, where they say anything: a server knows best what it does by default. */
function options() {
  const set = {};
  if (at.temperature.value) set.temperature = at.temperature.valueAsNumber;
  if (!at.thinking.disabled && !at.thinking.indeterminate) set.thinking = { type: at.thinking.checked ? "enabled" : "disabled" };
  return set;
}

/** An answer begins (what ends it is given), or is over (null). */
function run(controller) {
  const focused = [at.send, at.stop].includes(document.activeElement);
  running = controller;
  document.body.classList.toggle("running", Boolean(running));
  at.send.hidden = Boolean(running);
  at.stop.hidden = !running;
  if (running) announce("Answering");
  if (focused) at.text.focus();
}

function retry() {
  if (running) return;
  leaveEditing();
  turns.pop().node.remove();
  at.text.focus();
  ask();
}

function startAnew() {
  running?.abort();
  leaveEditing();
  turns = [];
  at.turns.replaceChildren();
  at.empty.hidden = false;
  figures.reset();
  notify("");
  at.text.focus();
}

// -- Changing the last message -------------------------------------------------------------------------------------------------

function edit() {
  if (running) return;
  const { text, files } = turns.findLast(isQuestion);
  draft ??= { text: at.text.value, files: attached.files };
  write(text, files);
}

function leaveEditing() {
  if (!draft) return;
  const { text, files } = draft;
  draft = null;
  write(text, files);
}

function write(text, files) {
  at.editing.hidden = !draft;
  turns.findLast(isQuestion)?.node.classList.toggle("changing", Boolean(draft));
  at.text.value = text;
  attached.replace(files);
  at.text.focus();
}

// -- Lines above the message ---------------------------------------------------------------------------------------------------

/** Say something in a line, or nothing; with `again`, a button does it again. */
function notify(line, again) {
  const [text, button] = at.notice.children;
  at.notice.hidden = !line;
  text.textContent = line;
  button.hidden = !again;
  button.onclick = again;
}

/** Tell those who listen rather than look. */
function announce(line) {
  at.said.textContent = line;
}

function askForKey() {
  at.lock.hidden = false;
  at.key.focus();
}

async function useKey() {
  key.set(at.key.value.trim());
  at.key.value = "";
  at.lock.hidden = true;
  at.text.focus();
  if (!known.length) await loadModels();
  if (turns.at(-1)?.failed) retry();
}

async function copy(button) {
  const code = button.closest(".code");
  const text = code ? code.querySelector("pre").textContent : turns.find(({ node }) => node.contains(button)).text;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed"; // browsers give the clipboard to https and localhost only
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// -- What a person does --------------------------------------------------------------------------------------------------------

function onEnter(node, act) {
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    act();
  });
}

onEnter(at.text, send);
onEnter(at.key, useKey);
at.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at.stop.addEventListener("click", () => running?.abort());
at.new.addEventListener("click", startAnew);
at.model.addEventListener("change", chooseModel);
at.attach.addEventListener("click", () => at.pick.click());
at.pick.addEventListener("change", async () => {
  await attached.add([...at.pick.files]);
  at.pick.value = "";
});
at.editing.querySelector("button").addEventListener("click", leaveEditing);
at.lock.querySelector("button").addEventListener("click", useKey);
at.turns.addEventListener("click", ({ target }) => target.closest("button.copy") && copy(target));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || at.panel.matches(":popover-open")) return;
  if (running) running.abort();
  else leaveEditing();
});
attached.listen(at.text);

// Stay at the end of the conversation while it grows, unless somebody has scrolled up to read.
let top = 0;
at.talk.addEventListener("scroll", () => {
  const up = at.talk.scrollTop < top;
  top = at.talk.scrollTop;
  // Down does not end it: the conversation may have grown since.
  if (up || !following) following = at.talk.scrollHeight - top - at.talk.clientHeight < 48;
});
const follow = new ResizeObserver(() => following && at.talk.scrollTo(0, at.talk.scrollHeight));
follow.observe(at.turns);
follow.observe(at.talk);

// Where there is room the drawer becomes a column, which is always there.
matchMedia("(min-width: 60rem)").addEventListener("change", () => at.panel.matches(":popover-open") && at.panel.hidePopover());

loadModels();
