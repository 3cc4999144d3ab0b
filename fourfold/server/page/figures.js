// The figures of the last turn and of the whole chat: tokens, cache hits, speed and price.

import { element } from "./markdown.js";

const ROWS = {
  first: ["First token after", (value) => `${value.toFixed(2)} s`],
  speed: ["Tokens a second", (value) => value.toFixed(1)],
  read: ["Tokens read", count],
  hit: ["… cached", (value, { read }) => `${count(value)} (${Math.round((100 * value) / Math.max(read, 1))} %)`],
  written: ["Tokens written", count],
  thought: ["… thinking", count],
  cost: ["Price", price],
};
const SUMS = ["read", "hit", "written", "thought", "cost"];

export class Figures {
  constructor(body) {
    this.cells = {};
    for (const [name, [title]] of Object.entries(ROWS)) {
      this.cells[name] = [element("td"), element("td")];
      body.append(element("tr", [element("th", [title], { scope: "row" }), ...this.cells[name]]));
    }
    this.reset();
  }

  reset() {
    this.turns = [];
    this.fill({});
  }

  /** A turn is over. `usage` is the API's, null where the answer was cut short; `clock` has our own seconds: first, all. */
  add(usage, clock) {
    this.turns.push(figuresOf(usage ?? {}, clock));
    this.fill(this.turns.at(-1));
  }

  fill(turn) {
    const chat = together(this.turns);
    for (const [name, [, format]] of Object.entries(ROWS)) {
      [turn, chat].forEach((figures, i) => {
        this.cells[name][i].textContent = figures[name] === undefined ? "–" : format(figures[name], figures);
      });
    }
  }
}

/** The server's own times where it gives them: they leave out the network. */
function figuresOf(usage, clock) {
  const first = usage.timing?.first_token_seconds ?? clock.first;
  const writing = (usage.timing?.seconds ?? clock.all) - first; // of all tokens but the first
  const written = usage.completion_tokens;
  return {
    first,
    writing: written > 1 && writing > 0 ? writing : undefined,
    speed: written > 1 && writing > 0 ? (written - 1) / writing : undefined,
    read: usage.prompt_tokens,
    hit: usage.prompt_cache_hit_tokens ?? usage.prompt_tokens_details?.cached_tokens,
    written,
    thought: usage.completion_tokens_details?.reasoning_tokens,
    cost: usage.cost ?? undefined,
    currency: usage.currency ?? undefined,
  };
}

/** Sums over turns; of the first token the mean, and the speed of all tokens together. */
function together(turns) {
  const known = (name) => turns.filter((turn) => turn[name] !== undefined);
  const sum = (name, among = known(name)) => among.reduce((total, turn) => total + turn[name], 0);
  const chat = {};
  for (const name of SUMS) if (known(name).length) chat[name] = sum(name);
  const [started, timed] = [known("first"), known("speed")];
  chat.currency = turns.at(-1)?.currency;
  if (known("cost").some((turn) => turn.currency !== chat.currency)) delete chat.cost; // two currencies have no sum
  if (started.length) chat.first = sum("first") / started.length;
  if (timed.length) chat.speed = (sum("written", timed) - timed.length) / sum("writing", timed);
  return chat;
}

function count(value) {
  return value.toLocaleString("en");
}

/** In the currency of the server's price table, where it says which. */
function price(value, { currency }) {
  const money = /^[A-Z]{3}$/.test(currency) ? { style: "currency", currency } : {};
  return value.toLocaleString("en", { maximumSignificantDigits: 3, ...money });
}
