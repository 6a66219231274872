// The transcript on the page. Text is set as text, never as HTML: whatever is said stays words.

import { clock } from "./exports.js";
import { RATE } from "./kept.js";

const MOST_SPOKEN = 20; // paragraphs for a screen reader, which has read the older ones
const NEAR_THE_END = 200; // pixels

export class View {
  // `where` has the elements: list, interim, spoken. `onName` is called with a segment whose speaker
  // was clicked; without it speakers are no buttons.
  constructor(transcript, where, onName) {
    this.transcript = transcript;
    Object.assign(this, where);
    this.onName = onName;
    this.isSilent = false; // while a screen reader is not to read what is shown
    this.items = new Map();
    transcript.addEventListener("segment", ({ detail }) => this._show(detail));
    transcript.addEventListener("break", ({ detail }) => this._break(detail));
    transcript.addEventListener("cleared", () => this._clear());
  }

  showInterim(segments) {
    this.interim.textContent = segments.map(({ text }) => text).join(" ");
    follow(this.interim);
  }

  _show(segment) {
    const { transcript } = this;
    const label = transcript.labelOf(segment);
    let item = this.items.get(segment.id);
    if (!item) {
      item = this._make(segment);
      this.items.set(segment.id, item);
      this._insert(item, segment.from);
      this.interim.textContent = "";
      this._speak(`${label}: ${segment.text}`);
      follow(item.root);
    } else if (segment.text.startsWith(item.segment.text)) {
      this._speak(segment.text.slice(item.segment.text.length));
    }
    item.segment = segment;
    item.root.dataset.voice = transcript.voiceOf(segment);
    setText(item.who, label);
    setText(item.time, clock(segment.from / RATE));
    item.time.dateTime = `PT${(segment.from / RATE).toFixed(2)}S`;
    setText(item.delay, segment.delay === null || segment.delay === undefined ? "" : `${segment.delay.toFixed(1)} s delay`);
    setText(item.text, segment.text);
    if (this.onName) item.who.setAttribute("aria-label", `${label}: say who this is`);
  }

  // For a screen reader: the words alone, each once. The list itself changes far too often.
  _speak(text) {
    if (this.isSilent || !text.trim()) return;
    const line = make("p", "");
    line.textContent = text.trim();
    this.spoken.append(line);
    while (this.spoken.childElementCount > MOST_SPOKEN) this.spoken.firstElementChild.remove();
  }

  _make(segment) {
    const root = document.createElement("li");
    const head = make("div", "head"), text = make("p", "");
    const who = make(this.onName ? "button" : "span", "who");
    const time = make("time", "meta"), delay = make("span", "meta");
    delay.title = "From the last word to its text";
    head.append(who, time, delay);
    root.append(head, text);
    root.dataset.id = segment.id;
    const item = { root, who, time, delay, text, segment };
    if (this.onName) {
      who.type = "button";
      who.title = "Say who this is";
      who.onclick = () => this.onName(item.segment);
    }
    return item;
  }

  // Segments come in order of time, nearly always.
  _insert(item, from) {
    item.root.dataset.from = from;
    let before = null;
    for (let each = this.list.lastElementChild; each && Number(each.dataset.from) > from; each = each.previousElementSibling) {
      before = each;
    }
    this.list.insertBefore(item.root, before);
  }

  _break(text) {
    const root = make("li", "break");
    root.textContent = text;
    this.list.append(root);
    this._speak(text);
    follow(root);
  }

  _clear() {
    this.items.clear();
    this.list.replaceChildren();
    this.spoken.replaceChildren();
    this.interim.textContent = "";
  }
}

function make(tag, className) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  return element;
}

// Nothing is touched without need: who has selected text keeps the selection.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Keep the end in sight for whoever reads there, and leave those alone who have scrolled up.
export function follow(element) {
  const fromEnd = document.documentElement.scrollHeight - window.scrollY - window.innerHeight;
  if (fromEnd < NEAR_THE_END) element.scrollIntoView({ block: "nearest" });
}
