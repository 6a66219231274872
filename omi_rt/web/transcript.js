// What was said, as it stands: segments by id, corrected in place.
//
// Speakers are numbered by each session. Where a server was restarted the next session counts from
// zero again, so a speaker is known here by session and number, and shown by the order in which
// the speakers came.

import { RATE } from "./kept.js";

const VOICES = 7; // colours

export class Transcript extends EventTarget {
  constructor() {
    super();
    this.clear();
  }

  clear() {
    this.segments = new Map();
    this.shown = []; // keys of speakers, in the order in which they came
    this.names = new Map(); // given when no session could be told
    this._tell("cleared");
  }

  get isEmpty() {
    return this.segments.size === 0;
  }

  // Segments whose `from`, `to` (samples on the tape) and `session` are known.
  put(segments) {
    for (const segment of segments) {
      const known = this.segments.get(segment.id);
      // A segment that only changes hands was not said again: its delay stays.
      const delay = known && known.to === segment.to ? known.delay : segment.delay;
      this._set({ ...known, ...segment, delay });
    }
  }

  // Apply an event that corrects segments.
  correct(event) {
    for (const id of event.segment_ids ?? []) {
      const segment = this.segments.get(id);
      if (!segment) continue;
      if (event.type === "speakers_merged") this._set({ ...segment, speaker_id: event.into });
      else this._set({ ...segment, is_user: event.is_user, person_id: event.person_id });
    }
  }

  // Name a speaker here alone, where the session is over.
  name(segment, name, isUser) {
    const key = keyOf(segment);
    if (isUser) this.names.delete(key);
    else this.names.set(key, name);
    for (const each of this.segments.values()) {
      if (keyOf(each) === key) this._set({ ...each, is_user: isUser, person_id: isUser ? null : each.person_id });
    }
  }

  addBreak(text) {
    this._tell("break", text);
  }

  // In order of time.
  inOrder() {
    return [...this.segments.values()].sort((a, b) => a.from - b.from);
  }

  // Who speaks, for a reader.
  labelOf(segment) {
    if (segment.is_user) return "You";
    const name = this.names.get(keyOf(segment));
    if (name !== undefined) return name;
    if (segment.person_id) return segment.person_id;
    return `Speaker ${this._number(segment) + 1}`;
  }

  // "user", or a number for the colour.
  voiceOf(segment) {
    return segment.is_user ? "user" : String(this._number(segment) % VOICES);
  }

  asJSON() {
    return this.inOrder().map((segment) => ({
      id: segment.id,
      start: segment.from / RATE,
      end: segment.to / RATE,
      speaker: this.labelOf(segment),
      is_user: segment.is_user,
      person_id: segment.person_id,
      text: segment.text,
    }));
  }

  _number(segment) {
    const key = segment.person_id ? `person ${segment.person_id}` : keyOf(segment);
    const at = this.shown.indexOf(key);
    return at >= 0 ? at : this.shown.push(key) - 1;
  }

  _set(segment) {
    this.segments.set(segment.id, segment);
    this._tell("segment", segment);
  }

  _tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function keyOf({ session, speaker_id }) {
  return `${session}/${speaker_id}`;
}
