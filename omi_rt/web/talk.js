// Talking: the microphone or a file, the words that come of it, and what is kept of them.

import { Connection } from "./connection.js";
import { FORMATS, clock, toText } from "./exports.js";
import { RATE } from "./kept.js";
import { nameSpeaker, tellAssigned } from "./naming.js";
import { about, askToken, element, note, say, tokenIfAsked, uid } from "./page.js";
import { decodeFile, levelOf, openMicrophone, playSamples } from "./sources.js";
import { Transcript } from "./transcript.js";
import { View } from "./view.js";

const STATES = {
  connecting: "Connecting.",
  live: "Listening.",
  finishing: "Waiting for the last words.",
  ended: "Done.",
};
// Where the server says nothing to whoever connects, this says what is meant.
const CLOSED = {
  4002: "The audio of the day is used up; it begins anew at midnight UTC.",
};

const transcript = new Transcript();
const view = new View(transcript, element("transcript"), element("interim"), (segment) => nameSpeaker(segment, connection, transcript));
let connection = null;
let stopSource = null;

async function start(open) {
  element("start").disabled = element("choose").disabled = true;
  try {
    note("");
    const token = await tokenIfAsked();
    const { listen } = await about();
    // The microphone first: where it is refused, no session has begun.
    const early = [];
    stopSource = await open((samples) => (connection ? hear(samples) : early.push(samples)));
    transcript.clear();
    element("empty").hidden = true;
    element("after").hidden = true;
    connect({ path: listen, token, uid: uid(), language: element("language").value.trim() || "en", usesProfile: element("profile").checked });
    early.forEach(hear);
    showRunning(true);
  } catch (error) {
    say("state", sayError(error), "refused");
  } finally {
    element("start").disabled = element("choose").disabled = false;
  }
}

function connect(options) {
  connection = new Connection(options);
  say("state", STATES.connecting, "connecting");
  connection.addEventListener("segments", ({ detail }) => transcript.put(detail.segments));
  connection.addEventListener("event", ({ detail }) => takeEvent(detail));
  connection.addEventListener("state", ({ detail }) => showState(detail));
  connection.addEventListener("restarted", () => transcript.addBreak("The server was restarted. Speakers are numbered anew from here."));
  connection.addEventListener("lost", ({ detail }) => note(`${detail.seconds.toFixed(1)} s were lost: the server was away for too long.`));
}

function hear(samples) {
  connection.append(samples);
  const { level, isLoud } = levelOf(samples);
  const meter = element("level");
  meter.firstElementChild.style.transform = `scaleX(${level.toFixed(2)})`;
  meter.classList.toggle("loud", isLoud);
  const time = clock(connection.kept.end / RATE);
  if (element("clock").textContent !== time) {
    element("clock").textContent = time;
    meter.setAttribute("aria-valuenow", Math.round(level * 100));
  }
}

function stop() {
  stopSource?.();
  stopSource = null;
  connection?.finish();
  showRunning(false);
}

function takeEvent(message) {
  if (message.type === "interim") view.showInterim(message.segments);
  else if (message.type === "speaker_identified" || message.type === "speakers_merged") transcript.correct(message);
  else if (message.type === "speaker_assigned") tellAssigned(message);
  else if (message.type === "assignment_failed") note(`That name was not taken: ${message.reason}.`);
  else if (message.type === "audio_lost") note(`${(message.end - message.start).toFixed(1)} s were given up: the recogniser was away for too long.`);
  else if (message.type === "service_status") takeStatus(message);
}

function takeStatus({ status, reason }) {
  if (status === "stt_degraded") say("state", "Listening. The recogniser is away for a moment; nothing is lost.", "waiting");
  else if (status === "stt_behind") say("state", "Listening. The recogniser is behind; words come late.", "waiting");
  else if (status === "stt_recovered" || status === "stt_caught_up") say("state", STATES[connection.state] ?? STATES.live, "live");
  else if (status === "identities_unavailable" && reason !== "no speech profile is stored") note(`Voices are not recognised: ${reason}.`);
}

async function showState({ state, code, reason }) {
  const mine = connection;
  if (state === "waiting") {
    say("state", "The connection is lost. Recording goes on; trying again.", "waiting");
    const why = await whyNot();
    if (why && mine === connection && connection.state === "waiting") say("state", `The server takes nobody now (${why}). Recording goes on; trying again.`, "waiting");
  } else if (state === "login") {
    say("state", "The server wants another token. Recording goes on.", "waiting");
    const token = await askToken(code === 4001 ? "The token has expired. Give a fresh one." : "That token was not taken.");
    mine.login(token);
  } else if (state === "refused") {
    stopSource?.();
    say("state", `The server has ended it: ${CLOSED[code] ?? reason ?? code}`, "refused");
    showEnd();
  } else {
    say("state", STATES[state], state);
    if (state === "ended") showEnd();
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
  element("start").hidden = isRunning;
  element("choose").hidden = isRunning;
  element("drop-hint").hidden = isRunning;
  element("stop").hidden = !isRunning;
  element("sound").hidden = !isRunning;
  for (const id of ["uid", "language", "profile"]) element(id).disabled = isRunning;
  (isRunning ? element("stop") : element("start")).focus();
  if (isRunning) element("after").hidden = true;
  // Another one may begin when this one has all its words.
  element("start").disabled = element("choose").disabled = !isRunning && !isOver();
}

const isOver = () => !connection || ["ended", "refused"].includes(connection.state);

function showEnd() {
  showRunning(false);
  view.showInterim([]);
  const { received, finalised, lost } = connection.account;
  const sessions = connection.sessions > 1 ? `, in ${connection.sessions} sessions` : "";
  element("account").textContent = `${received.toFixed(1)} s received, ${finalised.toFixed(1)} s finalised, ${lost.toFixed(1)} s lost${sessions}.`;
  element("after").hidden = false;
}

function sayError(error) {
  if (error.name === "NotAllowedError") return "The browser does not let this page use the microphone. Allow it in the address bar, or play a file.";
  if (error.name === "NotFoundError") return "There is no microphone. You can play a file.";
  if (error instanceof TypeError) return "The server cannot be reached.";
  return error.message;
}

function play(file) {
  if (!file || stopSource || !isOver()) return;
  const progress = element("progress");
  start(async (take) => {
    say("state", `Reading ${file.name}.`, "connecting");
    const samples = await decodeFile(file);
    if (!samples.length) throw new Error(`${file.name} is empty.`);
    progress.value = 0;
    progress.hidden = false;
    element("level").hidden = true;
    return playSamples(samples, take, (share) => { progress.value = share; }, stop);
  });
}

function save(kind) {
  const { write, type } = FORMATS[kind];
  const url = URL.createObjectURL(new Blob([write(transcript.asJSON(), connection.account)], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `transcript.${kind}`;
  link.click();
  URL.revokeObjectURL(url);
}

async function copy() {
  const text = toText(transcript.asJSON());
  try {
    await navigator.clipboard.writeText(text);
    note("Copied.");
  } catch {
    note("The browser does not let this page copy. Select the text instead.");
  }
}

function takeDrops(area) {
  const over = (isOverIt) => (event) => {
    event.preventDefault();
    area.classList.toggle("over", isOverIt);
  };
  area.addEventListener("dragover", over(true));
  area.addEventListener("dragleave", over(false));
  area.addEventListener("drop", (event) => {
    over(false)(event);
    play(event.dataTransfer.files[0]);
  });
}

export function beginTalk() {
  element("start").onclick = () => {
    element("progress").hidden = true;
    element("level").hidden = false;
    start((take) => openMicrophone(take, stop));
  };
  element("stop").onclick = stop;
  element("choose").onclick = () => element("file").click();
  element("file").onchange = ({ target }) => {
    play(target.files[0]);
    target.value = "";
  };
  takeDrops(element("drop"));
  element("copy").onclick = copy;
  for (const button of document.querySelectorAll("[data-save]")) button.onclick = () => save(button.dataset.save);
  window.addEventListener("online", () => connection?.hurry());
  // Whoever leaves in the middle is asked: what is not sent yet would be gone.
  window.addEventListener("beforeunload", (event) => {
    if (!isOver()) event.preventDefault();
  });
}
