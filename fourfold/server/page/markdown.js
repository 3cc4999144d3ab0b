// Markdown as DOM nodes. Text only ever becomes text: nothing a model says is read as HTML, and links lead to http(s) only.
//
// What is known: paragraphs, headings, fenced code, lists in lists, quotes and rules; in a line code, strong, emphasis and links.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:\s|$)/;
const INDENTED = /^\s{2,}\S/;
// Bounded, so that a text full of lone stars costs no more than another.
const INLINE = new RegExp(
  [
    "\\\\(?<escaped>[\\\\`*_\\[\\]#>-])",
    "(?<ticks>`{1,3})(?<code>.{1,500}?)(?<!`)\\k<ticks>(?!`)",
    "(?<two>\\*\\*|(?<!\\w)__)(?=\\S)(?<strong>.{1,500}?)(?<=\\S)\\k<two>(?!\\*)",
    "(?<one>\\*|(?<!\\w)_)(?=[^\\s*_])(?<emphasis>.{1,500}?)(?<=\\S)\\k<one>(?![\\w*])",
    "!?\\[(?<label>[^\\[\\]]{1,500})\\]\\((?<target>[^\\s()<>]{1,1000}(?:\\([^\\s()]{0,200}\\)[^\\s()]{0,200})?)\\)",
    "(?<address>https?://[^\\s<>\"]{1,1000}(?<![.,;:!?)\\]*_']))",
  ].join("|"),
  "gs",
);

/** Make `node` show `text`. Blocks that were there already stay the same nodes, so that a growing text costs little. */
export function show(node, text) {
  const wanted = blocks(text.split("\n"));
  wanted.forEach(({ source, make }, i) => {
    const old = node.children[i];
    if (old?.source === source) return;
    const made = Object.assign(make(), { source });
    if (old) old.replaceWith(made);
    else node.append(made);
  });
  while (node.children.length > wanted.length) node.lastChild.remove();
}

export function element(name, children = [], properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Lines as blocks: {source, make}, where `make` gives the block's element. */
function blocks(lines) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [end, make] = block(lines, at);
    found.push({ source: lines.slice(at, end).join("\n"), make });
    at = end;
  }
  return found;
}

/** The block that begins at a line: the line after it, and what makes its element. */
function block(lines, start) {
  const upTo = (belongs) => {
    let end = start + 1;
    while (end < lines.length && belongs(lines[end], end)) end++;
    return end;
  };
  const line = lines[start];
  let found;
  if ((found = FENCE.exec(line))) return fenced(lines, start, found);
  // The page itself has h1 and h2.
  if ((found = HEADING.exec(line))) return [start + 1, () => element(`h${Math.min(found[1].length + 2, 6)}`, inline(found[2]))];
  if (RULE.test(line)) return [start + 1, () => element("hr")];
  if (QUOTE.test(line)) {
    const end = upTo((next) => QUOTE.test(next));
    return [end, () => element("blockquote", elements(lines.slice(start, end).map((each) => each.replace(QUOTE, ""))))];
  }
  if ((found = ITEM.exec(line))) {
    const end = upTo((_, at) => inList(lines, at, found));
    return [end, () => list(lines.slice(start, end), found)];
  }
  const end = upTo((next) => next.trim() && !begins(next));
  return [end, () => element("p", inline(lines.slice(start, end).join("\n").trim()))];
}

const elements = (lines) => blocks(lines).map(({ make }) => make());

/** Whether a line begins another block than a paragraph. */
const begins = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

const ordered = ([, , mark]) => /\d/.test(mark);

function fenced(lines, start, [, fence, language]) {
  const closes = (line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");
  let end = start + 1;
  while (end < lines.length && !closes(lines[end])) end++;
  const make = () => {
    // Wide code is scrolled, by keyboard too.
    const pre = element("pre", [element("code", [lines.slice(start + 1, end).join("\n")])], { tabIndex: 0 });
    const copy = element("button", ["Copy"], { type: "button", className: "copy" });
    return element("div", [element("p", [element("span", [language]), copy]), pre], { className: "code" });
  };
  return [Math.min(end + 1, lines.length), make];
}

/** Whether a line belongs to the list that `first` begins: an item, what is indented, or the rest of a paragraph. */
function inList(lines, at, first) {
  const line = lines[at] ?? "";
  const item = ITEM.exec(line);
  if (item) return item[1].length >= first[1].length + 2 || ordered(item) === ordered(first);
  if (INDENTED.test(line)) return true;
  if (line.trim()) return lines[at - 1].trim() && !begins(line);
  const next = lines[at + 1] ?? "";
  return (ITEM.test(next) || INDENTED.test(next)) && inList(lines, at + 1, first);
}

function list(lines, first) {
  const items = [];
  let width = 0;
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length < first[1].length + 2) {
      width = found[1].length + found[2].length + 1;
      items.push([line.slice(width)]);
    } else {
      items.at(-1).push(line.slice(Math.min(width, line.search(/\S|$/))));
    }
  }
  const made = element(ordered(first) ? "ol" : "ul", items.map(listItem));
  if (ordered(first)) made.start = parseInt(first[2]);
  return made;
}

/** An item; its first paragraph needs no element of its own. */
function listItem(lines) {
  const [first, ...rest] = elements(lines);
  return element("li", first?.tagName === "P" ? [...first.childNodes, ...rest] : first ? [first, ...rest] : []);
}

/** The text of a paragraph as nodes and texts. */
function inline(text) {
  const made = [];
  let last = 0;
  for (const found of text.matchAll(INLINE)) {
    const { escaped, code, strong, emphasis, label, target, address } = found.groups;
    made.push(text.slice(last, found.index));
    last = found.index + found[0].length;
    if (escaped) made.push(escaped);
    else if (code) made.push(element("code", [code.replace(/^ (.*) $/s, "$1")]));
    else if (strong) made.push(element("strong", inline(strong)));
    else if (emphasis) made.push(element("em", inline(emphasis)));
    else made.push(link(target ?? address, label ? inline(label) : [address], found[0]));
  }
  return [...made, text.slice(last)];
}

/** A link, or the text as it was written where that would lead to anything but http(s). */
function link(target, nodes, written) {
  if (!/^https?:\/\//i.test(target) || !URL.canParse(target)) return written;
  return element("a", nodes, { href: target, target: "_blank", rel: "noopener noreferrer" });
}
