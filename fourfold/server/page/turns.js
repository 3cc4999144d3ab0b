// What was said, as it stands in the conversation, and as the API is told of it again.

import { element, show } from "./markdown.js";
import { drawn, partOf, shown } from "./media.js";

/** A message of the person: text and attached files. */
export class Question {
  role = "user";

  constructor(text, files, edit) {
    this.text = text;
    this.files = files;
    const body = element("div", [], { className: "body" });
    if (files.length) body.append(element("div", files.map((file) => shown(file, true)), { className: "shown" }));
    if (text) body.append(element("p", [text]));
    this.node = turn("user", "You", [body, actions(button("Edit", edit))]);
  }

  /** In the API's form: files come before the words about them. */
  message() {
    if (!this.files.length) return { role: this.role, content: this.text };
    const words = this.text ? [{ type: "text", text: this.text }] : [];
    return { role: this.role, content: [...this.files.map(partOf), ...words] };
  }
}

/** An answer of the model: thoughts, then words and drawings in their order. It grows until `end`. */
export class Answer {
  role = "assistant";
  parts = [];
  nodes = []; // of the parts
  thoughts = "";
  failed = false;

  /** `words` describe what it draws to who cannot see it. */
  constructor(model, words, retry) {
    this.words = words;
    this.began = performance.now();
    this.body = element("div", [], { className: "body" });
    this.status = element("p", [], { className: "status" });
    this.copy = button("Copy");
    this.node = turn("assistant", model, [this.body, this.status, actions(this.copy, button("Retry", retry))]);
    this.node.ariaBusy = "true";
  }

  /** The words alone. */
  get text() {
    return this.parts.map((part) => part.text ?? "").join("");
  }

  think(text) {
    this.thoughts += text;
    this.later();
  }

  say(text) {
    this.thought();
    const last = this.parts.at(-1);
    if (last?.type === "text") last.text += text;
    else this.parts.push({ type: "text", text });
    this.later();
  }

  /** A drawing begins: rows and columns of a picture, before them the frames of a clip. */
  begin(grid) {
    this.thought();
    this.status.textContent = grid?.length === 3 ? "Filming …" : "Drawing …";
  }

  draw(part) {
    this.thought();
    this.status.textContent = "";
    this.parts.push(part);
    this.later();
  }

  /** It is over: whole (no `why`), or why it is not. An error comes as `alert`, which is read out at once. */
  end(why = "", alert = false) {
    this.thought();
    this.render();
    this.node.ariaBusy = "false";
    this.failed = alert;
    this.node.classList.toggle("failed", alert);
    if (alert) this.status.role = "alert";
    this.status.textContent = why;
    this.copy.hidden = !this.text;
  }

  /** In the API's form; null for one that says nothing. */
  message() {
    if (!this.parts.length) return null;
    return { role: this.role, content: this.parts.some((part) => part.type !== "text") ? this.parts : this.text };
  }

  /** Thinking is over: say how long it took. */
  thought() {
    if (this.thoughts && !this.thinking) this.thinking = performance.now() - this.began;
  }

  /** Show what has come, once a frame however many pieces come. */
  later() {
    this.waiting ??= requestAnimationFrame(() => this.render());
  }

  render() {
    cancelAnimationFrame(this.waiting);
    this.waiting = undefined;
    if (this.thoughts) this.renderThoughts();
    this.parts.forEach((part, i) => {
      if (part.type !== "text") this.rendered(i, () => drawn(part, this.words));
      else show(this.rendered(i, () => element("div", [], { className: "prose" })), part.text);
    });
  }

  /** The node of a part, which is made once. */
  rendered(i, make) {
    if (!this.nodes[i]) this.body.append((this.nodes[i] = make()));
    return this.nodes[i];
  }

  renderThoughts() {
    if (!this.details) {
      this.details = element("details", [element("summary"), element("p")]);
      this.body.prepend(this.details);
    }
    const [summary, text] = this.details.children;
    summary.textContent = this.thinking ? `Thought for ${(this.thinking / 1000).toFixed(1)} s` : "Thinking …";
    text.textContent = this.thoughts.trim();
  }
}

function turn(role, name, children) {
  return element("article", [element("h2", [name]), ...children], { className: role, ariaLabel: name });
}

const actions = (...buttons) => element("div", buttons, { className: "actions" });

const button = (name, onclick = null) => element("button", [name], { type: "button", className: name.toLowerCase(), onclick });
