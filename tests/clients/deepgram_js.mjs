// Streams PCM with Deepgram's official JavaScript SDK; prints what came of it as JSON.
// Run in a folder where `npm install @deepgram/sdk@5` was done: node deepgram_js.mjs FOLDER PCM URL
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, path, url] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${folder}/package.json`));
const { DeepgramClient } = require("@deepgram/sdk");

const pcm = readFileSync(path);
const client = new DeepgramClient({
  apiKey: "sesame",
  environment: { base: url.replace("ws", "http"), production: url, agent: "ws://x" },
});
const socket = await client.listen.v1.connect({
  model: "nova-3",
  encoding: "linear16",
  sample_rate: 16000,
  punctuate: "true",
  diarize: "true",
  Authorization: "Token sesame",
});
const words = [];
const types = new Set();
const errors = [];
const closed = new Promise((resolve) => socket.on("close", resolve));
socket.on("error", (error) => errors.push(String(error)));
socket.on("message", (message) => {
  types.add(message.type);
  if (message.type === "Results" && message.is_final) words.push(...message.channel.alternatives[0].words);
});
socket.connect();
await socket.waitForOpen();
for (let start = 0; start < pcm.length; start += 3200) {
  socket.sendMedia(pcm.subarray(start, start + 3200));
  await new Promise((next) => setTimeout(next, 100));
}
socket.sendCloseStream({ type: "CloseStream" });
const { code } = await closed;
console.log(
  JSON.stringify({
    words: words.map(({ word }) => word),
    speakers: words.map(({ speaker }) => speaker),
    types: [...types].sort(),
    errors,
    code,
  }),
);
process.exit(0);
