// Audio that may have to be sent again: what was recorded and is not final yet.
//
// Positions are samples on the "tape", which begins with the recording and, unlike a session's
// clock, outlives every connection and every server.

export const RATE = 16000;

export class KeptAudio {
  constructor(mostSeconds) {
    this.start = 0;
    this.end = 0;
    this.most = mostSeconds * RATE;
    this.chunks = [];
  }

  // Returns how many of the oldest samples there was no more room for.
  append(samples) {
    this.chunks.push({ at: this.end, samples });
    this.end += samples.length;
    const before = this.start;
    if (this.end - this.start > this.most) this.release(this.end - this.most);
    return this.start - before;
  }

  // Let go of what comes before a position.
  release(position) {
    this.start = Math.max(this.start, Math.min(position, this.end));
    let gone = 0;
    while (gone < this.chunks.length) {
      const { at, samples } = this.chunks[gone];
      if (at + samples.length > this.start) break;
      gone += 1;
    }
    if (gone) this.chunks.splice(0, gone);
  }

  // Copy up to `most` samples from a position on.
  read(position, most) {
    const from = Math.max(position, this.start);
    const size = Math.max(0, Math.min(most, this.end - from));
    const copy = new Int16Array(size);
    for (let i = this._indexOf(from), done = 0; done < size; i += 1) {
      const { at, samples } = this.chunks[i];
      const part = samples.subarray(from + done - at, from - at + size);
      copy.set(part, done);
      done += part.length;
    }
    return copy;
  }

  _indexOf(position) {
    let low = 0, high = this.chunks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.chunks[middle].at <= position) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
