// Talking: the microphone or a file, the words that come of it, and what is kept of them.

import { Connection } from "./connection.js";
import { FORMATS, clock, toText } from "./exports.js";
import { RATE } from "./kept.js";
import { nameSpeaker, tellAssigned } from "./naming.js";
import { about, askToken, element, note, say, sayError, sentence, tokenIfAsked, uid } from "./page.js";
import { decodeFile, openMicrophone, playSamples, showLevel } from "./sources.js";
import { Transcript } from "./transcript.js";
import { View, follow } from "./view.js";

const REVOKE_MS = 10000; // a browser may begin to save only after a while
// Where the server gives a code or a name alone, this says what is meant.
const MEANINGS = {
  4002: "The audio of the day is used up. It begins anew at midnight UTC.",
  stt_failed: "The recogniser refuses for good.",
};

const transcript = new Transcript();
const view = new View(
  transcript,
  { list: element("transcript"), interim: element("interim"), spoken: element("spoken") },
  (segment) => nameSpeaker(segment, connection, transcript),
);
let connection = null;
let source = null; // what is heard, while it is: `stop`, and how that is called in a sentence
let failure = null; // what the server has said of its recogniser's

const isOver = () => !connection || connection.isOver;

// `kind` has `open`, which is given what takes samples and returns what stops them, and how it is
// spoken of: `live` while all is well, `kept` while the server is away.
async function start(kind) {
  element("start").disabled = element("choose").disabled = true;
  let stopIt = null;
  try {
    note("");
    if ((await about()).asks_token) say("state", "Give your token first.");
    const token = await tokenIfAsked();
    const { listen } = await about();
    // The microphone first: where it is refused, no session has begun.
    const early = [];
    let mine = null;
    stopIt = await kind.open((samples) => (mine ? hear(mine, samples) : early.push(samples)));
    const language = element("language").value.trim() || "en";
    transcript.clear();
    element("transcript").lang = language === "multi" ? "" : language;
    element("empty").hidden = element("after").hidden = true;
    mine = connect({ path: listen, token, uid: uid(), language, usesProfile: element("profile").checked });
    source = { ...kind, stop: stopIt };
    early.forEach((samples) => hear(mine, samples));
    showRunning(true);
  } catch (error) {
    stopIt?.();
    const isMicrophone = /^Not.*Error$/u.test(error.name);
    say("state", `${sayError(error)}${isMicrophone ? " You can play a file instead." : ""}`, "refused");
  } finally {
    element("start").disabled = element("choose").disabled = false;
  }
}

function connect(options) {
  const mine = new Connection(options);
  connection = mine;
  failure = null;
  say("state", "Connecting.", "connecting");
  mine.addEventListener("segments", ({ detail }) => transcript.put(detail.segments));
  mine.addEventListener("event", ({ detail }) => takeEvent(detail));
  mine.addEventListener("state", ({ detail }) => showState(mine, detail));
  mine.addEventListener("restarted", () => transcript.addBreak("The server was restarted. Speakers are numbered anew from here."));
  mine.addEventListener("losing", () => note("The server has been away for two minutes. The oldest audio is now given up."));
  mine.addEventListener("lost", ({ detail }) => note(`${detail.seconds.toFixed(1)} s were lost, because the server was away for over two minutes.`));
  return mine;
}

function hear(mine, samples) {
  mine.append(samples);
  const time = clock(mine.kept.end / RATE);
  const isNext = element("clock").textContent !== time;
  if (isNext) element("clock").textContent = time;
  showLevel(element("level"), samples, isNext);
}

function stop() {
  source?.stop();
  source = null;
  connection?.finish();
  showRunning(false);
  if (connection && !isOver()) showState(connection, { state: connection.state });
}

function takeEvent(message) {
  if (message.type === "interim") view.showInterim(message.segments);
  else if (message.type === "speaker_identified" || message.type === "speakers_merged") transcript.correct(message);
  else if (message.type === "speaker_assigned") tellAssigned(message, connection.wantsStored);
  else if (message.type === "assignment_failed") note(`That name was not taken: ${message.reason}.`);
  else if (message.type === "audio_lost") note(`${(message.end - message.start).toFixed(1)} s were lost, because the recogniser was away for too long.`);
  else if (message.type === "service_status") takeStatus(message);
}

function takeStatus({ status, reason }) {
  if (status === "stt_degraded") say("state", "The recogniser is away for a moment. Nothing is lost.", "waiting");
  else if (status === "stt_behind") say("state", "The recogniser is behind. Words come late.", "waiting");
  else if (status === "stt_recovered" || status === "stt_caught_up") showState(connection, { state: connection.state });
  else if (status === "stt_failed") failure = reason;
  else if (status === "identities_unavailable" && reason !== "no speech profile is stored") note(`Voices are not recognised: ${reason}.`);
}

async function showState(mine, { state, code, reason }) {
  element("give-up").hidden = Boolean(source) || !["waiting", "login"].includes(state);
  const kept = source?.kept ?? "what was recorded";
  if (state === "waiting") {
    say("state", `The connection is lost. The page tries again, and keeps ${kept}.`, "waiting");
    const why = code === 1013 ? reason : await whyNot();
    if (why && mine === connection && mine.state === "waiting") say("state", `The server takes nobody now (${why}). The page tries again, and keeps ${kept}.`, "waiting");
  } else if (state === "login") {
    say("state", `The server wants another token. The page keeps ${kept}.`, "waiting");
    if (code === undefined) return; // it has been asked for
    try {
      mine.login(await askToken(code === 4001 ? "The token has expired. Give a fresh one." : "The server does not know that token."));
    } catch (error) {
      mine.giveUp(error.message);
    }
  } else if (state === "refused") {
    source?.stop();
    source = null;
    const why = MEANINGS[code] ?? failure ?? MEANINGS[reason] ?? reason;
    say("state", code === 0 ? reason : `The server has ended the session. ${sentence(why || `code ${code}`)}`, "refused");
    showEnd();
  } else if (state === "live") {
    say("state", source?.live ?? "Listening.", "live");
  } else if (state === "finishing") {
    say("state", "Waiting for the last words.", "finishing");
  } else if (state === "ended") {
    say("state", "Done. A new recording begins an empty page, so save first what you want to keep.", "ended");
    showEnd();
  }
}

// A browser does not tell a script why it could not connect; the server's readiness does.
async function whyNot() {
  try {
    const answer = await fetch("/readyz", { cache: "no-store" });
    return answer.ok ? "" : (await answer.text()).trim();
  } catch {
    return "";
  }
}

function showRunning(isRunning) {
  const { activeElement: focused } = document;
  // Who is somewhere else, to name a speaker perhaps, is not called away.
  const isHere = !focused || focused === document.body || element("stage").contains(focused);
  element("ready").hidden = element("options").hidden = isRunning;
  element("sound").hidden = !isRunning;
  element("stage").classList.toggle("running", isRunning);
  if (isRunning) element("after").hidden = true;
  // Another one may begin when this one has all its words.
  element("start").disabled = element("choose").disabled = !isRunning && !isOver();
  if (isHere) element(isRunning ? "stop" : "start").focus({ preventScroll: true });
}

function showEnd() {
  showRunning(false);
  view.showInterim([]);
  const { received, finalised, lost } = connection.account;
  const sessions = connection.sessions > 1 ? `, in ${connection.sessions} sessions` : "";
  element("account").textContent = `${received.toFixed(1)} s received, ${finalised.toFixed(1)} s finalised, ${lost.toFixed(1)} s lost${sessions}.`;
  element("keep").hidden = transcript.isEmpty;
  element("copied").textContent = "";
  element("empty").hidden = !transcript.isEmpty;
  element("empty").textContent = "No words were understood.";
  element("after").hidden = false;
  follow(element("after"));
}

function talk() {
  element("progress").hidden = true;
  element("level").hidden = false;
  start({
    live: "Listening.",
    kept: "what you say",
    open: (take) => {
      say("state", "Let the browser use the microphone, if it asks.");
      return openMicrophone(take, stop);
    },
  });
}

function play(file) {
  if (!file) return;
  if (source || !isOver()) {
    note(`Stop first: ${file.name} can be played when this recording is over.`);
    return;
  }
  if (element("start").disabled) return; // another one is just beginning
  const progress = element("progress");
  start({
    live: `Playing ${file.name}.`,
    kept: "what is played",
    open: async (take) => {
      say("state", `Reading ${file.name}.`, "connecting");
      const samples = await decodeFile(file);
      progress.value = 0;
      progress.hidden = false;
      element("level").hidden = true;
      return playSamples(samples, take, (share) => { progress.value = share; }, stop);
    },
  });
}

function save(kind) {
  const { write, type } = FORMATS[kind];
  const url = URL.createObjectURL(new Blob([write(transcript.asJSON(), connection.account)], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `transcript.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), REVOKE_MS);
}

async function copy() {
  element("copied").textContent = "";
  try {
    await navigator.clipboard.writeText(toText(transcript.asJSON()));
    element("copied").textContent = "Copied.";
  } catch {
    element("copied").textContent = "The browser does not let this page copy. Select the text instead.";
  }
}

// Anywhere on the page: a browser leaves it for a file that is dropped beside the mark.
function takeDrops() {
  const over = (isOverIt) => (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    element("stage").classList.toggle("over", isOverIt);
  };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", over(false));
  document.addEventListener("drop", (event) => {
    over(false)(event);
    if (!element("talk").hidden) play(event.dataTransfer.files[0]);
  });
}

export function beginTalk() {
  element("start").onclick = talk;
  element("stop").onclick = stop;
  element("give-up").onclick = () => connection.giveUp("You did not wait for the last words.");
  element("choose").onclick = () => element("file").click();
  element("file").onchange = ({ target }) => {
    play(target.files[0]);
    target.value = "";
  };
  takeDrops();
  element("copy").onclick = copy;
  for (const button of document.querySelectorAll("[data-save]")) button.onclick = () => save(button.dataset.save);
  window.addEventListener("online", () => connection?.hurry());
  // Whoever leaves in the middle is asked: what is not sent yet would be gone.
  window.addEventListener("beforeunload", (event) => {
    if (!isOver()) event.preventDefault();
  });
}
