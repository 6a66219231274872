// The way to the server, which survives lost lines and restarted servers.
//
// A lost line is taken up again with the session's secret, and the audio goes on where the server
// has it. Where the server was restarted there is no such session any more: a new one begins with
// the first sample that is not final, so nothing is lost and nothing comes twice.

import { KeptAudio, RATE } from "./kept.js";

const KEPT_SECONDS = 120;
const GIVE_UP_SECONDS = 600; // without a connection
const SILENT_SECONDS = 90; // three heartbeats
const LONGEST_PAUSE_SECONDS = 5;
const MOST_PER_MESSAGE = RATE; // samples; a message may have 64 KiB
const MOST_BUFFERED = 262144; // bytes that the browser may hold for us
const CLOSED_FOR_GOOD = [1000, 1008, 4002];
const TOKEN_EXPIRED = 4001;

export class Connection extends EventTarget {
  // `options`: path, uid, token (empty without a login), language, usesProfile.
  constructor(options) {
    super();
    this.options = options;
    this.kept = new KeptAudio(KEPT_SECONDS);
    this.state = "connecting";
    this.sessions = 0;
    this.account = { received: 0, finalised: 0, lost: 0 };
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

  // Take 16 kHz samples as they are recorded.
  append(samples) {
    const second = Math.floor(this.kept.end / RATE);
    if (this.times[second] === undefined) this.times[second] = performance.now();
    const dropped = this.kept.append(samples);
    if (dropped && this.kept.start > this.sent) {
      // Never sent, and there is no room for it any more.
      const gap = this.kept.start - this.sent;
      this.account.lost += gap / RATE;
      this._tell("lost", { seconds: gap / RATE });
      this.runs.push({ session: this._toSession(this.sent), tape: this.kept.start });
      this.sent = this.kept.start;
    }
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
    this.sessions += 1;
    this.runs = [{ session: 0, tape: zero }];
    this.zero = zero;
    this.sent = zero;
    this.secret = null;
    this.seq = 0;
  }

  // Begin again on a server that knows nothing of the session.
  _beginAgain() {
    const done = (this.final - this.zero) / RATE;
    this.account.received += done;
    this.account.finalised += done;
    this._beginSession(this.final);
    this._tell("restarted");
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
      setTimeout(() => this._pump(), 50);
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
    this._become(state, { code, reason });
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
      this.sent = Math.max(this.kept.start, this._toTape(Math.round(received * RATE)));
      this._startTalking();
    } else if (status === "resume_unknown") {
      this._beginAgain();
      this._startTalking();
    }
    if (["initiating", "ready", "resumed"].includes(status)) {
      this.lostSince = null;
      this.attempts = 0;
      this._become(this.isFinishing ? "finishing" : "live");
    }
  }

  _takeAccount(message) {
    for (const name of ["received", "finalised", "lost"]) this.account[name] += message[name];
    // Whatever it has received it is done with; what it has not is for the next session.
    this._finalise(this._toTape(Math.round(message.received * RATE)));
    if (this.hasClosedStream && message.reason === "client_closed_stream") {
      this.hasEnded = true;
    } else {
      // Ended for a reason of the server's own: its account is told, and the next one begins here.
      this.zero = this.final;
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
