// A curve that grows while it is drawn: a hundred thousand points and more, each taken in once, thinned for the eye.

/** The points of one metric of a run, in the order of their seq. */
export class Series {
  constructor() {
    this.length = 0;
    this.lastSeq = -1;
    this.columns = { tokens: new Float64Array(1024), flops: new Float64Array(1024), value: new Float64Array(1024) };
  }

  /** Take a point in; false where it is here already. `tokens` are those of the whole run. */
  add({ seq, tokens, flops, value }) {
    if (seq <= this.lastSeq) return false;
    if (this.length === this.columns.value.length) this.#widen();
    this.columns.tokens[this.length] = tokens;
    this.columns.flops[this.length] = flops;
    this.columns.value[this.length] = value;
    this.length += 1;
    this.lastSeq = seq;
    return true;
  }

  #widen() {
    for (const [name, old] of Object.entries(this.columns)) {
      this.columns[name] = new Float64Array(old.length * 2);
      this.columns[name].set(old);
    }
  }

  last(column) {
    return this.length ? this.columns[column][this.length - 1] : null;
  }

  /**
   * Places of the points to draw from `from` on, about four for each of `numBuckets`: of each bucket the first, the lowest, the
   * highest and the last, so that no spike is lost.
   */
  thinned(numBuckets, from = 0) {
    const { value } = this.columns;
    const num = this.length - from;
    if (num <= 4 * numBuckets) return Array.from({ length: Math.max(0, num) }, (_, place) => from + place);
    const places = [];
    for (let bucket = 0; bucket < numBuckets; bucket += 1) {
      const first = from + Math.floor((bucket * num) / numBuckets);
      const end = from + Math.floor(((bucket + 1) * num) / numBuckets);
      let lowest = first;
      let highest = first;
      for (let place = first; place < end; place += 1) {
        if (value[place] < value[lowest]) lowest = place;
        if (value[place] > value[highest]) highest = place;
      }
      places.push(...new Set([first, Math.min(lowest, highest), Math.max(lowest, highest), end - 1]));
    }
    return places;
  }

  /** Place of the first point with at least that much on an axis ("tokens" or "flops"). */
  placeOf(axis, least) {
    const column = this.columns[axis];
    let [low, high] = [0, this.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (column[middle] < least) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
