// In the audio thread: whatever rate the sound card has becomes frames of 20 ms at 16 kHz.

const RATE = 16000;
const FRAME = 320;
const ZEROS = 16; // of the filter's sinc on each side
const STEPS = 64; // of its table between two zeros

// A windowed sinc, as a table over one side: it is symmetrical.
function makeTable() {
  const table = new Float32Array(ZEROS * STEPS + 2);
  for (let i = 0; i < ZEROS * STEPS; i += 1) {
    const x = i / STEPS;
    const sinc = x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
    table[i] = sinc * (0.5 + 0.5 * Math.cos((Math.PI * x) / ZEROS));
  }
  return table;
}

class Resampler {
  constructor(from) {
    this.step = from / RATE; // input samples for each output sample
    // What lies above half the lower rate would come back as a false tone: it is filtered out.
    this.cut = Math.min(1, 1 / this.step) * 0.95;
    this.reach = Math.ceil(ZEROS / this.cut);
    this.table = makeTable();
    this.input = new Float32Array(this.reach); // silence before the first sample
    this.at = this.reach; // of the next output sample, in `input`
  }

  // Pass each output sample that the input so far allows to `take`.
  push(samples, take) {
    const input = new Float32Array(this.input.length + samples.length);
    input.set(this.input);
    input.set(samples, this.input.length);
    const { cut, reach, table } = this;
    while (this.at + reach < input.length) {
      let sum = 0;
      for (let i = Math.ceil(this.at - reach); i <= this.at + reach; i += 1) {
        const x = Math.abs(i - this.at) * cut * STEPS;
        const low = Math.floor(x);
        if (low < ZEROS * STEPS) sum += input[i] * (table[low] + (table[low + 1] - table[low]) * (x - low));
      }
      take(sum * cut);
      this.at += this.step;
    }
    const done = Math.max(0, Math.floor(this.at) - reach);
    this.at -= done;
    this.input = input.slice(done);
  }
}

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate);
    this.frame = new Int16Array(FRAME);
    this.filled = 0;
  }

  process([channels]) {
    if (!channels.length) return true;
    let mono = channels[0];
    if (channels.length > 1) {
      mono = mono.map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
    }
    this.resampler.push(mono, (value) => {
      this.frame[this.filled] = Math.max(-32768, Math.min(32767, Math.round(value * 32767)));
      this.filled += 1;
      if (this.filled === FRAME) {
        const frame = this.frame;
        this.frame = new Int16Array(FRAME);
        this.filled = 0;
        this.port.postMessage(frame, [frame.buffer]);
      }
    });
    return true;
  }
}

registerProcessor("microphone", Microphone);
