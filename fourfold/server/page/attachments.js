// Files that go with the next message: chosen by a button, dropped anywhere, or pasted.

import { element } from "./markdown.js";
import { KINDS, read, shown } from "./media.js";

export class Attachments {
  files = [];
  kinds = Object.keys(KINDS);

  /** `list` shows them, `notify` tells what cannot be attached, in one line. */
  constructor(list, notify) {
    this.list = list;
    this.notify = notify;
  }

  /** Take only what a model with these abilities (null: not known) can do something with; gives the types of files. */
  allow(can) {
    this.kinds = Object.keys(KINDS).filter((kind) => !can || can.has(kind));
    return this.kinds.map((kind) => `${kind}/*`).join(",");
  }

  async add(files) {
    for (const file of files) {
      try {
        const one = await read(file);
        if (!this.kinds.includes(one.kind)) throw new Error(`${file.name}: this model takes no ${KINDS[one.kind]}.`);
        this.files.push(one);
      } catch (error) {
        this.notify(error.message);
      }
    }
    this.render();
  }

  /** Put these in place of what is there. */
  replace(files) {
    this.files = [...files];
    this.render();
  }

  remove(file) {
    this.files = this.files.filter((each) => each !== file);
    this.render();
  }

  render() {
    const items = this.files.map((file) => {
      const remove = element("button", ["×"], { type: "button", ariaLabel: `Remove ${file.name}` });
      remove.addEventListener("click", () => this.remove(file));
      return element("li", [shown(file, false), element("span", [file.name]), remove], { className: file.kind });
    });
    this.list.replaceChildren(...items);
  }

  /** Take what is pasted into `field`, and dropped anywhere on the page. */
  listen(field) {
    field.addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.add([...event.clipboardData.files]);
    });
    const over = (event) => event.dataTransfer?.types.includes("Files");
    const mark = (on) => document.body.classList.toggle("dropping", on);
    document.addEventListener("dragover", (event) => {
      if (over(event)) event.preventDefault();
      mark(over(event));
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget ?? mark(false));
    document.addEventListener("drop", (event) => {
      mark(false);
      if (!over(event)) return;
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    });
  }
}
