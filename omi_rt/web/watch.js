// Watching: another session's words as they come, read only.

import { about, askToken, element, say, sayError, sentence, tokenIfAsked, uid } from "./page.js";
import { RATE } from "./kept.js";
import { Transcript } from "./transcript.js";
import { View } from "./view.js";

const PAUSE_MS = 2000;
const HISTORY_MS = 1000;
const TRY_AGAIN = 1013;
const transcript = new Transcript();
const view = new View(transcript, {
  list: element("watched"), interim: element("watched-interim"), spoken: element("watched-spoken"),
});
let socket = null;
let visit = 0; // which one; what belongs to an earlier one comes to nothing

const whose = () => element("watch-uid").value.trim() || uid();

// Follow one session, or the list of all where there is none, until the visit is over.
async function follow(session, mine) {
  try {
    const { may_watch: may } = await about();
    if (mine !== visit) return;
    if (!may) {
      say("watch-state", "This server has no login, so sessions can be watched on its own machine only.", "warn");
      return;
    }
    const token = await tokenIfAsked();
    if (mine === visit) open(session, mine, token);
  } catch (error) {
    if (mine !== visit) return;
    say("watch-state", sayError(error), "refused");
    if (error instanceof TypeError) again(session, mine); // the server could not be reached
  }
}

function open(session, mine, token) {
  const query = new URLSearchParams(session ? { session, uid: whose() } : { uid: whose() });
  socket = new WebSocket(`${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}/web/watch?${query}`);
  if (token) socket.onopen = ({ target }) => target.send(JSON.stringify({ type: "auth", token }));
  socket.onmessage = ({ data }) => mine === visit && take(JSON.parse(data));
  socket.onclose = ({ code, reason }) => mine === visit && lose(session, mine, code, reason);
}

function again(session, mine) {
  setTimeout(() => mine === visit && follow(session, mine), PAUSE_MS);
}

function take(message) {
  if (Array.isArray(message)) put(message);
  else if (message.type === "sessions") list(message.sessions);
  else if (message.type === "watching") greet(message);
  else if (message.type === "interim") view.showInterim(message.segments);
  else if (message.type === "watch_missed") transcript.addBreak(`${message.count} messages did not come through, because this page was too slow.`);
  else if (message.type === "speaker_identified" || message.type === "speakers_merged") transcript.correct(message);
}

function greet({ session_id: id, began_at: began, uid: of }) {
  say("watch-state", `Following a session of “${of}” that began at ${timeOf(began)} (${id.slice(0, 8)}).`, "live");
  element("watch-empty").hidden = !transcript.isEmpty;
  // What was said before comes next, all at once: nobody wants that read out. It may be nothing.
  view.isSilent = true;
  setTimeout(() => { view.isSilent = false; }, HISTORY_MS);
}

function put(segments) {
  element("watch-empty").hidden = true;
  transcript.put(segments.map((each) => ({
    ...each, session: 1, from: Math.round(each.start * RATE), to: Math.round(each.end * RATE), delay: null,
  })));
  view.isSilent = false;
}

const timeOf = (date) => new Date(date).toLocaleTimeString();

function list(sessions) {
  if (sessions.length) say("watch-state", sessions.length === 1 ? "One session is running." : `${sessions.length} sessions are running.`, "live");
  else say("watch-state", "No session is running. One that begins appears here.");
  element("sessions").replaceChildren(...sessions.map((each) => {
    const item = document.createElement("li"), link = document.createElement("a");
    link.href = `/?watch=${each.session_id}`;
    link.textContent = `Began at ${timeOf(each.began_at)}, language ${each.language} (${each.session_id.slice(0, 8)})`;
    item.append(link);
    return item;
  }));
}

async function lose(session, mine, code, reason) {
  view.showInterim([]);
  if (reason === "Bad token" || code === 4001) {
    try {
      await askToken(code === 4001 ? "The token has expired. Give a fresh one." : "The server does not know that token.");
      if (mine === visit) follow(session, mine);
    } catch (error) {
      if (mine === visit) say("watch-state", error.message, "refused");
    }
  } else if (code === 1000) {
    say("watch-state", "The session is over. This is what was said.", "ended");
    element("watch-empty").hidden = true;
  } else if (code === 1008) {
    say("watch-state", session ? "There is no such session of yours, or it is over." : sentence(reason), "refused");
  } else {
    say("watch-state", code === TRY_AGAIN ? `${sentence(reason)} The page tries again.` : "The connection is lost. The page tries again.", "waiting");
    again(session, mine);
  }
}

function start(session) {
  endWatch();
  transcript.clear();
  element("sessions").replaceChildren();
  element("watch-empty").hidden = true;
  element("watch-back").hidden = !session;
  say("watch-state", session ? "Looking for the session." : "Looking for sessions.");
  follow(session, visit);
}

export function beginWatch(session) {
  const field = element("watch-uid");
  if (!field.value) field.value = uid();
  element("watch-who").onsubmit = (event) => {
    event.preventDefault();
    start(session);
  };
  // With a login the token says whose sessions there are.
  about().then(({ asks_token: asks, may_watch: may }) => { element("watch-who").hidden = asks || !may || Boolean(session); }, () => {});
  start(session);
}

export function endWatch() {
  visit += 1;
  const last = socket;
  socket = null;
  last?.close();
}
