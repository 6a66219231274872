// Where audio comes from: the microphone, or a file. Both give 16 kHz samples at the pace of time.

import { RATE } from "./kept.js";

const MOST_FILE_BYTES = 200e6;
const TICK_MS = 20;

// Opens the microphone; `take` gets Int16Arrays of 20 ms. Returns what stops it.
export async function openMicrophone(take, onLost) {
  if (!navigator.mediaDevices) {
    throw new Error("A browser gives the microphone only to pages over HTTPS, or from this machine itself (http://localhost).");
  }
  // What is made for calls takes the edges off words and makes voices alike.
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true },
  });
  const context = new AudioContext();
  const stop = () => {
    stream.getTracks().forEach((track) => track.stop());
    return context.state === "closed" ? undefined : context.close();
  };
  try {
    await context.audioWorklet.addModule("/web/microphone-worklet.js");
    const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => take(data);
    context.createMediaStreamSource(stream).connect(node);
    stream.getTracks()[0].onended = onLost;
    await context.resume();
  } catch (error) {
    stop();
    throw error;
  }
  return stop;
}

// Decodes whatever the browser can decode, to one channel of 16 kHz.
export async function decodeFile(file) {
  if (file.size > MOST_FILE_BYTES) throw new Error(`${file.name} is over 200 MB.`);
  const bytes = await file.arrayBuffer();
  let audio;
  try {
    // The context's rate is the one that it decodes to.
    audio = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
  } catch {
    throw new Error(`This browser cannot play ${file.name}.`);
  }
  const channels = Array.from({ length: audio.numberOfChannels }, (_, i) => audio.getChannelData(i));
  const samples = new Int16Array(audio.length);
  for (let i = 0; i < samples.length; i += 1) {
    let sum = 0;
    for (const channel of channels) sum += channel[i];
    samples[i] = Math.max(-32768, Math.min(32767, Math.round((sum / channels.length) * 32767)));
  }
  return samples;
}

// Plays samples as if they were being recorded. Returns what stops it.
export function playSamples(samples, take, onProgress, onEnd) {
  const began = performance.now();
  let at = 0;
  // By the clock, not by the count of ticks: a browser slows the timers of a page in the background.
  const timer = setInterval(() => {
    const due = Math.min(samples.length, Math.floor(((performance.now() - began) / 1000) * RATE));
    while (at < due) {
      const end = Math.min(due, at + RATE);
      take(samples.slice(at, end));
      at = end;
    }
    onProgress(at / samples.length);
    if (at === samples.length) {
      clearInterval(timer);
      onEnd();
    }
  }, TICK_MS);
  return () => clearInterval(timer);
}

// Show the level of samples on a meter; a screen reader is told of it where `isTold`.
export function showLevel(meter, samples, isTold) {
  const { level, isLoud } = levelOf(samples);
  meter.firstElementChild.style.transform = `scaleX(${level.toFixed(2)})`;
  meter.classList.toggle("loud", isLoud);
  if (isTold) meter.setAttribute("aria-valuenow", Math.round(level * 100));
}

// The level of samples, from 0 to 1 on a scale of decibels, and whether any is at full scale.
function levelOf(samples) {
  let sum = 0, peak = 0;
  for (const value of samples) {
    sum += value * value;
    peak = Math.max(peak, Math.abs(value));
  }
  const decibels = 20 * Math.log10(Math.sqrt(sum / samples.length) / 32768 + 1e-9);
  return { level: Math.max(0, Math.min(1, (decibels + 60) / 60)), isLoud: peak > 32500 };
}
