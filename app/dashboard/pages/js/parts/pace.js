// How fast a run goes: FLOPs a second between its last lines, pauses left out, and the time that the rest takes at that pace.

const LINES = 40;
const BLOCKS = 5;
// A gap this many times the usual one is a pause, a wait in the queue or a restart.
const PAUSE = 10;

export class Pace {
  constructor() {
    this.lines = [];
  }

  /** A training line: its phase, FLOPs so far, and when it was written (ISO). */
  add({ phase, flops, time }) {
    if (this.lines.length && this.lines[0].phase !== phase) this.lines = [];
    this.lines.push({ phase, flops, seconds: new Date(time) / 1000 });
    if (this.lines.length > LINES + 1) this.lines.shift();
  }

  /** `{seconds, range}` until `flops` more are done; null before three lines of a phase, range null before there are enough to tell. */
  timeFor(flops) {
    const steps = this.lines.slice(1).map((line, place) => [line.flops - this.lines[place].flops, line.seconds - this.lines[place].seconds]);
    const usual = median(steps.map(([, seconds]) => seconds));
    const kept = steps.filter(([, seconds]) => seconds <= PAUSE * usual);
    if (kept.length < 2) return null;
    const [pace] = paces(kept, 1);
    const blocks = kept.length >= 2 * BLOCKS ? paces(kept, BLOCKS) : null;
    return { seconds: flops / pace, range: blocks && [flops / Math.max(...blocks), flops / Math.min(...blocks)], numLines: kept.length };
  }
}

function paces(steps, numBlocks) {
  return Array.from({ length: numBlocks }, (_, block) => {
    const own = steps.slice(Math.floor((block * steps.length) / numBlocks), Math.floor(((block + 1) * steps.length) / numBlocks));
    const [flops, seconds] = own.reduce(([f, s], [df, ds]) => [f + df, s + ds], [0, 0]);
    return flops / Math.max(seconds, 1e-3);
  });
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}
