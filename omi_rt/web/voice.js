// Enrolment: ten seconds of one's own voice, looked at by the server before anything is stored.

import { about, askToken, element, say, tokenIfAsked, uid } from "./page.js";
import { RATE } from "./kept.js";
import { openMicrophone } from "./sources.js";
import { toWav } from "./wav.js";

const SECONDS = 10;
let recording = null;

async function record() {
  const button = element("record"), progress = element("recorded");
  button.disabled = true;
  element("recording").hidden = true;
  try {
    await tokenIfAsked();
    const samples = new Int16Array(SECONDS * RATE);
    let at = 0, stop = null;
    await new Promise((resolve, reject) => {
      const take = (part) => {
        const room = part.subarray(0, samples.length - at);
        samples.set(room, at);
        at += room.length;
        progress.value = at / RATE;
        if (at === samples.length) resolve();
      };
      progress.hidden = false;
      say("verdict", "Recording. Read aloud.", "live");
      openMicrophone(take, () => reject(new Error("The microphone is gone."))).then((opened) => { stop = opened; }, reject);
    }).finally(() => stop?.());
    recording = toWav(samples);
    URL.revokeObjectURL(element("playback").src);
    element("playback").src = URL.createObjectURL(recording);
    element("recording").hidden = false;
    await check();
  } catch (error) {
    say("verdict", error.message, "bad");
  } finally {
    progress.hidden = true;
    button.disabled = false;
    button.textContent = "Record again";
  }
}

async function check() {
  element("store").disabled = true;
  element("replace").hidden = true;
  const answer = await send({ check: true });
  element("store").disabled = !answer.fit;
  if (answer.fit) say("verdict", "This is good. Listen to it, then store it.", "good");
  else say("verdict", `Not good enough: ${answer.reason}.`, "bad");
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
    say("verdict", `Not stored: ${answer.reason}.`, "bad");
  }
}

async function send(what) {
  const token = await tokenIfAsked();
  const headers = { "Content-Type": "audio/wav", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  try {
    const answer = await fetch(`/web/profile?${new URLSearchParams({ uid: uid(), ...what })}`, { method: "POST", headers, body: recording });
    if (answer.status === 401) {
      await askToken("That token was not taken.");
      return send(what);
    }
    return await answer.json();
  } catch {
    return { fit: false, reason: "the server cannot be reached" };
  }
}

export async function beginVoice() {
  element("record").onclick = record;
  element("store").onclick = () => store(false);
  element("replace").onclick = () => store(true);
  const { may_enrol: may } = await about();
  if (!may) {
    element("record").disabled = true;
    say("verdict", "This server stores no voices from here.", "warn");
  }
}
