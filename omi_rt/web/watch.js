// Watching: another session's words as they come, read only.

import { about, askToken, currentToken, element, say, tokenIfAsked, uid } from "./page.js";
import { RATE } from "./kept.js";
import { Transcript } from "./transcript.js";
import { View } from "./view.js";

const PAUSE_MS = 2000;
const transcript = new Transcript();
const view = new View(transcript, element("watched"), element("watched-interim"));
let socket = null;
let isOpen = false;

// Follow one session, or the list of all where there is none.
async function follow(session) {
  const token = await tokenIfAsked();
  const query = new URLSearchParams(session ? { session, uid: uid() } : { uid: uid() });
  const mine = new WebSocket(`${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}/web/watch?${query}`);
  socket = mine;
  if (token) mine.onopen = () => mine.send(JSON.stringify({ type: "auth", token }));
  mine.onmessage = ({ data }) => mine === socket && take(JSON.parse(data));
  mine.onclose = ({ code, reason }) => mine === socket && lose(session, code, reason);
}

function take(message) {
  if (Array.isArray(message)) put(message);
  else if (message.type === "sessions") list(message.sessions);
  else if (message.type === "watching") say("watch-state", `Following session ${message.session_id.slice(0, 8)}.`, "live");
  else if (message.type === "interim") view.showInterim(message.segments);
  else if (message.type === "watch_missed") transcript.addBreak(`${message.count} messages did not come through: this page was too slow.`);
  else if (message.type === "speaker_identified" || message.type === "speakers_merged") transcript.correct(message);
}

function put(segments) {
  transcript.put(segments.map((each) => ({
    ...each, session: 1, from: Math.round(each.start * RATE), to: Math.round(each.end * RATE), delay: null,
  })));
}

function list(sessions) {
  say("watch-state", sessions.length ? "Running sessions:" : "No session is running. One that begins appears here.", sessions.length ? "live" : "idle");
  element("sessions").replaceChildren(...sessions.map((each) => {
    const item = document.createElement("li"), link = document.createElement("a");
    link.href = `/?watch=${each.session_id}`;
    link.textContent = `${new Date(each.began_at).toLocaleTimeString()} · ${each.language} · ${each.session_id.slice(0, 8)}`;
    item.append(link);
    return item;
  }));
}

async function lose(session, code, reason) {
  view.showInterim([]);
  if (reason === "Bad token" || code === 4001) {
    await askToken("That token was not taken.");
    follow(session);
  } else if (code === 1000) {
    say("watch-state", "The session is over.", "ended");
  } else if (code === 1008) {
    say("watch-state", session ? "There is no such session of yours, or no longer." : reason, "refused");
  } else {
    say("watch-state", "The connection is lost; trying again.", "waiting");
    setTimeout(() => isOpen && follow(session).catch(() => lose(session, 1006, "")), PAUSE_MS);
  }
}

export async function beginWatch(session) {
  isOpen = true;
  const { may_watch: may } = await about();
  if (!may) return say("watch-state", "There is no login here, so only this machine may watch.", "warn");
  transcript.clear();
  element("sessions").replaceChildren();
  return follow(session);
}

export function endWatch() {
  isOpen = false;
  const last = socket;
  socket = null;
  last?.close();
}
