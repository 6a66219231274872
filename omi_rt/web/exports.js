// A transcript as subtitles, text or JSON. Segments are those of `Transcript.asJSON`.

const LEAST_SECONDS = 0.001; // a cue that lasts no time is none to many players

export function toText(segments) {
  return segments.map((s) => `[${time(s.start, ".")}] ${oneLine(s.speaker)}: ${oneLine(s.text)}\n`).join("");
}

export function toSRT(segments) {
  return segments.map((s, i) => `${i + 1}\n${span(s, ",")}\n${oneLine(s.speaker)}: ${oneLine(s.text)}\n`).join("\n");
}

export function toVTT(segments) {
  const cues = segments.map((s) => `${s.id}\n${span(s, ".")}\n<v ${escape(s.speaker)}>${escape(s.text)}</v>\n`);
  return ["WEBVTT\n", ...cues].join("\n");
}

export function toJSON(segments, account) {
  return `${JSON.stringify({ segments, account }, null, 2)}\n`;
}

export const FORMATS = {
  srt: { write: toSRT, type: "application/x-subrip" },
  vtt: { write: toVTT, type: "text/vtt" },
  json: { write: toJSON, type: "application/json" },
};

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const minutes = Math.floor(whole / 60) % 60, rest = String(whole % 60).padStart(2, "0");
  return whole < 3600 ? `${minutes}:${rest}` : `${Math.floor(whole / 3600)}:${String(minutes).padStart(2, "0")}:${rest}`;
}

function span({ start, end }, point) {
  return `${time(start, point)} --> ${time(Math.max(end, start + LEAST_SECONDS), point)}`;
}

function time(seconds, point) {
  const all = Math.round(seconds * 1000);
  const pad = (value, digits) => String(Math.floor(value)).padStart(digits, "0");
  return `${pad(all / 3600000, 2)}:${pad((all / 60000) % 60, 2)}:${pad((all / 1000) % 60, 2)}${point}${pad(all % 1000, 3)}`;
}

function oneLine(text) {
  return text.split(/\s+/u).filter(Boolean).join(" ");
}

// "-->" would end a cue's text, and "&" and "<" begin something else (WebVTT, 4.2.2).
function escape(text) {
  return oneLine(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
