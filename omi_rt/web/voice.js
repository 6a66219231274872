// Enrolment: ten seconds of one's own voice, looked at by the server before anything is stored.

import { about, askToken, element, say, sayError, tokenIfAsked, uid } from "./page.js";
import { RATE } from "./kept.js";
import { openMicrophone, showLevel } from "./sources.js";
import { toWav } from "./wav.js";

const SECONDS = 10;
let recording = null;

async function record() {
  const button = element("record");
  button.disabled = true;
  element("recording").hidden = true;
  try {
    await tokenIfAsked();
    recording = toWav(await listen());
    URL.revokeObjectURL(element("playback").src);
    element("playback").src = URL.createObjectURL(recording);
    element("recording").hidden = false;
    button.textContent = "Record again";
    button.classList.remove("primary");
    await check();
  } catch (error) {
    say("verdict", sayError(error), "bad");
  } finally {
    element("voice-sound").hidden = true;
    button.disabled = false;
  }
}

// Ten seconds from the microphone.
async function listen() {
  const samples = new Int16Array(SECONDS * RATE);
  let at = 0, stop = null;
  say("verdict", "Let the browser use the microphone, if it asks.");
  try {
    await new Promise((resolve, reject) => {
      const take = (part) => {
        const room = part.subarray(0, samples.length - at);
        const isNext = Math.floor(at / RATE) !== Math.floor((at + room.length) / RATE);
        samples.set(room, at);
        at += room.length;
        element("recorded").value = at / RATE;
        showLevel(element("voice-level"), part, isNext);
        if (at === samples.length) resolve();
      };
      openMicrophone(take, () => reject(new Error("The microphone is gone."))).then((opened) => {
        stop = opened;
        element("recorded").value = 0;
        element("voice-sound").hidden = false;
        say("verdict", "Recording. Read aloud.", "live");
      }, reject);
    });
  } finally {
    stop?.();
  }
  return samples;
}

async function check() {
  element("store").disabled = true;
  element("replace").hidden = true;
  const answer = await send({ check: true });
  element("store").disabled = !answer.fit;
  if (answer.fit) say("verdict", "This is good. Listen to it, then store it.", "good");
  else say("verdict", `This is not good enough: ${answer.reason}.`, "bad");
}

async function store(replaces) {
  element("store").disabled = true;
  element("replace").hidden = true;
  const answer = await send(replaces ? { replace: true } : {});
  if (answer.stored) {
    say("verdict", "Stored. From the next session on your own words are marked.", "good");
  } else if (answer.exists) {
    element("replace").hidden = false;
    say("verdict", "Another recording of your voice is stored already.", "warn");
  } else {
    element("store").disabled = false;
    say("verdict", `This was not stored: ${answer.reason}.`, "bad");
  }
}

async function send(what) {
  const token = await tokenIfAsked();
  const headers = { "Content-Type": "audio/wav", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    const response = await fetch(`/web/profile?${new URLSearchParams({ uid: uid(), ...what })}`, { method: "POST", headers, body: recording });
    answer = { status: response.status, ...await response.json() };
  } catch {
    return { fit: false, reason: "the server cannot be reached" };
  }
  if (answer.status !== 401) return answer;
  await askToken("The server does not know that token.");
  return send(what);
}

const failing = (task) => task().catch((error) => {
  element("store").disabled = false;
  say("verdict", sayError(error), "bad");
});

export async function beginVoice() {
  element("record").onclick = record;
  element("store").onclick = () => failing(() => store(false));
  element("replace").onclick = () => failing(() => store(true));
  try {
    const { may_enrol: may } = await about();
    if (may) return;
    element("record").disabled = true;
    say("verdict", "This server stores no voices from here.", "warn");
  } catch (error) {
    say("verdict", sayError(error), "bad");
  }
}
