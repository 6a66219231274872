// The way to the server, which survives lost lines and restarted servers.
//
// A lost line is taken up again with the session's secret, and the audio goes on where the server
// has it. Where the server was restarted there is no such session any more: a new one begins with
// the first sample that is not final, so nothing is lost and nothing comes twice. What there was no
// room to keep is a gap: it is told, counted, and skipped.

import { KeptAudio, RATE } from "./kept.js";

const KEPT_SECONDS = 120;
const GIVE_UP_SECONDS = 600; // without a connection
const SILENT_SECONDS = 90; // three heartbeats
const LONGEST_PAUSE_SECONDS = 5;
const MOST_PER_MESSAGE = RATE; // samples; a message may have 64 KiB
const MOST_BUFFERED = 262144; // bytes that the browser may hold for us
const CLOSED_FOR_GOOD = [1000, 1008, 4002];
const TOKEN_EXPIRED = 4001;
const PUMP_MS = 50;

export class Connection extends EventTarget {
  // `options`: path, uid, token (empty without a login), language, usesProfile.
  constructor(options) {
    super();
    this.options = options;
    this.kept = new KeptAudio(KEPT_SECONDS);
    this.state = "connecting";
    this.sessions = 1;
    this.told = { received: 0, finalised: 0, lost: 0 }; // by sessions that are over
    this.gaps = []; // stretches of the tape that were given up here
    this.toldGaps = 0; // samples of them that the listener has been told of
    this.isLosing = false;
    this.wantsStored = false; // whether the last name that was given came with the wish to store the voice
    this.isFinishing = false;
    this.lastHeard = 0;
    this.lostSince = null;
    this.attempts = 0;
    this.secret = null;
    this.seq = 0;
    this.final = 0; // on the tape: everything before it is done with
    this.times = []; // when each second of the tape was recorded, for the delay of words
    this._beginSession(0);
    this.watchdog = setInterval(() => this._look(), 1000);
    this._open();
  }

  get isOver() {
    return this.state === "ended" || this.state === "refused";
  }

  // Seconds: what sessions have told, and what was given up before any server had it.
  get account() {
    return { ...this.told, lost: this.told.lost + this._gapSamples() / RATE };
  }

  // Take 16 kHz samples as they are recorded.
  append(samples) {
    if (this.isFinishing || this.isOver) return;
    const second = Math.floor(this.kept.end / RATE);
    if (this.times[second] === undefined) this.times[second] = performance.now();
    const dropped = this.kept.append(samples);
    if (dropped && this.kept.start > this.sent) this._sendFrom(this.sent);
    this._pump();
  }

  // No more audio comes: the last words are waited for.
  finish() {
    this.isFinishing = true;
    if (this.state === "live") this._become("finishing");
    this._pump();
  }

  // Say who a speaker is; returns false where nobody is there to be told.
  assign(speaker, personId, isToBeStored) {
    if (!this.canAssign) return false;
    this.wantsStored = isToBeStored;
    this.socket.send(JSON.stringify({
      type: "speaker_assigned", speaker_id: speaker, person_id: personId, segment_ids: [], store: isToBeStored,
    }));
    return true;
  }

  get canAssign() {
    return this.mayTalk && !this.hasClosedStream && this.socket?.readyState === WebSocket.OPEN;
  }

  // Seconds from the recording of a sample to now.
  delayOf(position) {
    const second = Math.floor(Math.max(0, position - 1) / RATE);
    const at = this.times[second];
    return at === undefined ? null : Math.max(0, (performance.now() - at) / 1000 - (position / RATE - second));
  }

  // One session after another.

  _beginSession(zero) {
    this.runs = [{ session: 0, tape: zero }];
    this.secret = null;
    this.seq = 0;
    this.isKnown = false; // to the server
    this.isSettled = false;
    this._sendFrom(zero);
  }

  // Begin again on a server that knows nothing of the session, or never did.
  _beginAgain() {
    const wasKnown = this.isKnown;
    this._settle();
    if (wasKnown) this.sessions += 1;
    this._beginSession(this.final);
    if (wasKnown) this._tell("restarted");
  }

  // Count what is final of a session that cannot give its own account any more.
  _settle() {
    if (this.isSettled) return;
    this.isSettled = true;
    const done = Math.max(0, this._toSession(this.final)) / RATE;
    this.told.received += done;
    this.told.finalised += done;
  }

  // Let the next sample to be sent be the one at a position, or the first that is still there.
  _sendFrom(position) {
    this.sent = position;
    if (this.kept.start > position) this._giveUpTo(this.kept.start);
  }

  // Give up what has not been sent, or is not to be, up to a position on the tape.
  _giveUpTo(end) {
    const from = this.sent, session = this._toSession(from), run = this.runs.at(-1);
    if (run.session === session) run.tape = end;
    else this.runs.push({ session, tape: end });
    this.gaps = this.gaps.filter((gap) => gap.from < from);
    const last = this.gaps.at(-1);
    if (last?.end === from) last.end = end;
    else this.gaps.push({ from, end });
    this.sent = end;
    if (!this.isLosing) {
      this.isLosing = true;
      this._tell("losing");
    }
  }

  _gapSamples() {
    return this.gaps.reduce((sum, { from, end }) => sum + (end - from), 0);
  }

  _toTape(session) {
    const run = this.runs.findLast((each) => each.session <= session) ?? this.runs[0];
    return run.tape + (session - run.session);
  }

  _toSession(tape) {
    const run = this.runs.findLast((each) => each.tape <= tape) ?? this.runs[0];
    return run.session + (tape - run.tape);
  }

  // One line after another.

  _open() {
    const { path, uid, token, language, usesProfile } = this.options;
    const query = new URLSearchParams({
      language, codec: "pcm16", sample_rate: RATE, channels: 1, interim: true, acknowledge: true,
      include_speech_profile: usesProfile,
    });
    if (!token) query.set("uid", uid);
    this.isResuming = this.secret !== null;
    if (this.isResuming) {
      query.set("resume", this.secret);
      query.set("after", this.seq);
    } else if (this.hasBegun) {
      // The line was lost before the session could tell how to come back.
      this._beginAgain();
    }
    this.mayTalk = false;
    this.hasClosedStream = false;
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}${path}?${query}`);
    this.socket = socket;
    this.lastHeard = performance.now();
    socket.onopen = () => {
      // A page cannot set a header: it says first who it is. Without a login the uid does.
      if (path === "/v4/web/listen") socket.send(JSON.stringify({ type: "auth", token: token || uid }));
      if (!this.isResuming) this._startTalking();
    };
    socket.onmessage = ({ data }) => socket === this.socket && this._take(JSON.parse(data));
    socket.onclose = ({ code, reason }) => socket === this.socket && this._lose(code, reason);
  }

  _startTalking() {
    this.mayTalk = true;
    this.hasBegun = true;
    this._pump();
  }

  _pump() {
    const { socket } = this;
    if (!this.mayTalk || this.hasClosedStream || socket.readyState !== WebSocket.OPEN) return;
    while (this.sent < this.kept.end && socket.bufferedAmount < MOST_BUFFERED) {
      const samples = this.kept.read(this.sent, MOST_PER_MESSAGE);
      socket.send(samples);
      this.sent += samples.length;
    }
    if (this.sent < this.kept.end) {
      clearTimeout(this.later); // or each frame would begin another row of looks
      this.later = setTimeout(() => this._pump(), PUMP_MS);
    } else if (this.isFinishing) {
      this.hasClosedStream = true;
      socket.send('{"type":"CloseStream"}');
    }
  }

  _look() {
    const silent = (performance.now() - this.lastHeard) / 1000;
    if (this.socket && silent > SILENT_SECONDS && ["live", "finishing", "connecting"].includes(this.state)) {
      // A line that is dead without saying so: its close may take minutes.
      this._lose(1006, "");
    }
  }

  _lose(code, reason) {
    const { socket } = this;
    this.socket = null;
    this.mayTalk = false;
    socket.onclose = null;
    socket.close();
    if (this.hasEnded) return this._end("ended");
    if (code === TOKEN_EXPIRED || reason === "Bad token") return this._become("login", { code, reason });
    if (CLOSED_FOR_GOOD.includes(code) || reason === "stt_failed") return this._end("refused", code, reason);
    const now = performance.now();
    this.lostSince ??= now;
    if (now - this.lostSince > GIVE_UP_SECONDS * 1000) return this._end("refused", code, "there was no connection for ten minutes");
    this.attempts += 1;
    const longest = Math.min(LONGEST_PAUSE_SECONDS, 0.25 * 2 ** this.attempts);
    const pause = longest * (0.5 + Math.random() / 2);
    this._become("waiting", { code, reason });
    this.retry = setTimeout(() => this._open(), pause * 1000);
  }

  _end(state, code, reason) {
    clearInterval(this.watchdog);
    if (state === "refused") {
      // What is not final now never will be.
      this._settle();
      this.sent = this.final;
      if (this.kept.end > this.final) this.gaps = [...this.gaps.filter((gap) => gap.end <= this.final), { from: this.final, end: this.kept.end }];
    }
    this._become(state, { code, reason });
  }

  // End it here, whatever the server has still to say.
  giveUp(reason) {
    if (this.isOver) return;
    const { socket } = this;
    this.socket = null;
    this.mayTalk = false;
    clearTimeout(this.retry);
    socket?.close();
    this._end("refused", 0, reason);
  }

  // Try at once, because the network is back.
  hurry() {
    if (this.state !== "waiting") return;
    clearTimeout(this.retry);
    this.attempts = 0;
    this._open();
  }

  // Go on with another token; what was recorded meanwhile is sent.
  login(token) {
    if (this.state !== "login") return;
    this.options.token = token;
    this._become("connecting");
    this._open();
  }

  // What the server says.

  _take(message) {
    this.lastHeard = performance.now();
    if (Array.isArray(message)) {
      const fresh = message.filter(({ seq }) => seq === undefined || seq > this.seq);
      if (!fresh.length) return;
      this.seq = fresh.at(-1).seq ?? this.seq;
      for (const segment of fresh) this._takeSegment(segment);
      this._tell("segments", { segments: fresh });
      return;
    }
    if (message.seq !== undefined) {
      if (message.seq <= this.seq) return;
      this.seq = message.seq;
    }
    this.secret = message.resume ?? this.secret;
    if (message.type === "service_status") this._takeStatus(message);
    else if (message.type === "audio_received") this._finalise(this._toTape(Math.round(message.finalised * RATE)));
    else if (message.type === "session_ended") this._takeAccount(message);
    else if (message.type === "interim") {
      for (const segment of message.segments) this._place(segment);
    }
    this._tell("event", message);
  }

  _takeSegment(segment) {
    this._place(segment);
    segment.session = this.sessions;
    // A final covers all before its last word, also where the server has not said so yet.
    this._finalise(segment.to);
    segment.delay = this.delayOf(segment.to);
  }

  // Put a segment's times on the tape.
  _place(segment) {
    segment.from = this._toTape(Math.round(segment.start * RATE));
    segment.to = this._toTape(Math.round(segment.end * RATE));
  }

  _finalise(position) {
    this.final = Math.max(this.final, Math.min(position, this.sent));
    this.kept.release(this.final);
  }

  _takeStatus({ status, received }) {
    if (status === "resumed") {
      // What was skipped after that is skipped again, or sent after all.
      const position = Math.round(received * RATE);
      this.runs = this.runs.filter((run, i) => !i || run.session <= position);
      this._sendFrom(this._toTape(position));
      this._startTalking();
    } else if (status === "resume_unknown") {
      this._beginAgain();
      this._startTalking();
    }
    if (["initiating", "ready", "resumed"].includes(status)) {
      this.lostSince = null;
      this.attempts = 0;
      this.isKnown = true;
      this._become(this.isFinishing ? "finishing" : "live");
      this._tellLost();
    }
  }

  _tellLost() {
    const lost = this._gapSamples();
    if (lost > this.toldGaps) this._tell("lost", { seconds: (lost - this.toldGaps) / RATE });
    this.toldGaps = lost;
    this.isLosing = false;
  }

  _takeAccount(message) {
    for (const name of ["received", "finalised", "lost"]) this.told[name] += message[name];
    this.isSettled = true;
    // Whatever it has received it is done with; what it has not is for the next session.
    this._finalise(this._toTape(Math.round(message.received * RATE)));
    if (this.hasClosedStream && message.reason === "client_closed_stream") {
      this.hasEnded = true;
    } else {
      // Ended for a reason of the server's own: the next one begins here.
      this.secret = null;
    }
  }

  _become(state, detail = {}) {
    this.state = state;
    this._tell("state", { state, ...detail });
  }

  _tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
