// The transcript on the page. Text is set as text, never as HTML: whatever is said stays words.

import { clock } from "./exports.js";
import { RATE } from "./kept.js";

export class View {
  // `onName` is called with a segment whose speaker was clicked; without it speakers are no buttons.
  constructor(transcript, list, interim, onName) {
    this.transcript = transcript;
    this.list = list;
    this.interim = interim;
    this.onName = onName;
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
    let item = this.items.get(segment.id);
    if (!item) {
      item = this._make(segment);
      this.items.set(segment.id, item);
      this._insert(item, segment.from);
      this.interim.textContent = "";
      follow(item.root);
    }
    const { transcript } = this;
    item.segment = segment;
    item.root.dataset.voice = transcript.voiceOf(segment);
    setText(item.who, transcript.labelOf(segment));
    setText(item.time, clock(segment.from / RATE));
    item.time.dateTime = `PT${(segment.from / RATE).toFixed(2)}S`;
    setText(item.delay, segment.delay === null || segment.delay === undefined ? "" : `${segment.delay.toFixed(1)} s delay`);
    setText(item.text, segment.text);
    if (this.onName) item.who.setAttribute("aria-label", `${transcript.labelOf(segment)}: say who this is`);
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
  }

  _clear() {
    this.items.clear();
    this.list.replaceChildren();
    this.interim.textContent = "";
  }
}

function make(tag, className) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  return element;
}

// A live region is read again where it changes, so it is not touched without need.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Keep the end in sight for whoever reads there, and leave those alone who have scrolled up.
function follow(element) {
  const fromEnd = document.documentElement.scrollHeight - window.scrollY - window.innerHeight;
  if (fromEnd < 200) element.scrollIntoView({ block: "nearest" });
}
