// Pictures, clips and sound: files a person attaches, as parts of a message, and what a model drew, shown and to be kept.

import { element } from "./markdown.js";

/** What may be attached: kinds of files, as a model's abilities and the types of files call them. */
export const KINDS = { image: "pictures", audio: "sound", video: "clips" };

/** Small pictures are enlarged by whole steps up to so many CSS pixels, which fit on the narrowest phone. */
const SHARP = 288;
/** Where the name of a type of sound is not the API's. */
const FORMATS = { mpeg: "mp3", mp4: "m4a", "x-m4a": "m4a", "x-wav": "wav", wave: "wav", "vnd.wave": "wav", "x-flac": "flac" };

/** Read a file: {kind, name, url} with a data URL. Throws an Error in one line for what is none of KINDS, or cannot be read. */
export async function read(file) {
  const kind = file.type.split("/")[0];
  if (!(kind in KINDS)) throw new Error(`${file.name}: is no picture, sound or clip.`);
  const reader = new FileReader();
  const url = await new Promise((done, failed) => {
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error(`${file.name}: cannot be read; it may be too large for a browser.`));
    reader.readAsDataURL(file);
  });
  return { kind, name: file.name, url };
}

/** An attached file as the API wants it. */
export function partOf({ kind, url }) {
  if (kind === "image") return { type: "image_url", image_url: { url } };
  if (kind === "video") return { type: "video_url", video_url: { url } };
  const [head, data] = url.split(",", 2);
  const type = /audio\/([^;]+)/.exec(head)[1];
  return { type: "input_audio", input_audio: { data, format: FORMATS[type] ?? type } };
}

/** A file as it is shown: a thumbnail in the list of what is attached, or with controls in the conversation. */
export function shown({ kind, name, url }, controls) {
  if (kind === "image") return element("img", [], { src: url, alt: name });
  if (kind === "audio" && !controls) return element("span", ["♪"], { ariaHidden: "true" });
  return element(kind, [], { src: url, title: name, ariaLabel: name, controls, muted: !controls, preload: "metadata" });
}

/** A drawn picture or clip (a part of an answer), with its size and a button to keep it. */
export function drawn(part, words) {
  const { url } = part[part.type];
  const clip = part.type === "video_url";
  const size = element("span");
  const keep = element("button", ["Download"], { type: "button", onclick: () => download(url, clip ? "clip" : "picture") });
  const about = words ? `: ${words}` : "";
  const node = clip
    ? element("video", [], { controls: true, loop: true, muted: true, playsInline: true, ariaLabel: `Drawn clip${about}` })
    : element("img", [], { alt: `Drawn picture${about}` });
  if (clip) node.autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  node.addEventListener(clip ? "loadedmetadata" : "load", () => {
    const [width, height] = clip ? [node.videoWidth, node.videoHeight] : [node.naturalWidth, node.naturalHeight];
    size.textContent = `${width} × ${height}`;
    const times = Math.floor(SHARP / Math.max(width, height, 1));
    if (times > 1) Object.assign(node, { width: width * times, height: height * times, className: "sharp" });
  });
  node.src = url;
  return element("figure", [node, element("figcaption", [size, keep])]);
}

/** Save what a data URL holds. By way of a Blob: long data URLs cannot be followed as links. */
function download(url, name) {
  const [head, data] = url.split(",", 2);
  const type = /^data:([^;,]+)/.exec(head)[1];
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const href = URL.createObjectURL(new Blob([bytes], { type }));
  element("a", [], { href, download: `${name}.${type.split("/")[1].replace(/\+.*/, "")}` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
