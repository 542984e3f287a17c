// The loss of a run while it is trained: taken in point by point, drawn at most a few times a second.

import { chart, colour } from "../charts.js";
import { count, factor, flops, loss, tokens } from "../format.js";
import { phasesOf, runTokens } from "./job-design.js";
import { Pace } from "./pace.js";
import { Series } from "./series.js";

const BUCKETS = 300;
const LEAST_MS_BETWEEN_DRAWS = 250;
const SERIES_OF = { train_loss: "train", validation_loss: "validation" };
export const AXES = { tokens: "Tokens", flops: "FLOPs" };
export const PARTS = { all: "Whole run", grown: "Since growth", tail: "Last quarter" };

export class Curve {
  /** `marks()` gives `{prediction, points}`: the predicted final loss as a band, and decision points. */
  constructor(element, run, marks) {
    this.element = element;
    this.run = run;
    this.marks = marks;
    this.train = new Series();
    this.validation = new Series();
    this.pace = new Pace();
    this.view = { x: "tokens", part: "all" };
    this.drawnAt = 0;
    this.waits = false;
  }

  /** Take in a point of the API; other metrics and points that are here already are passed over. */
  add(point) {
    const series = this[SERIES_OF[point.metric]];
    if (!series?.add({ seq: point.seq, tokens: runTokens(this.run, point), flops: point.compute_flops, value: point.value })) return;
    if (series === this.train) this.pace.add({ phase: point.phase, flops: point.compute_flops, time: point.time });
    this.drawSoon();
  }

  show(view) {
    this.view = view;
    this.drawSoon();
  }

  /** Draw with the next picture, or a moment later where the last drawing is fresh; however many points come meanwhile. */
  drawSoon() {
    if (this.waits) return;
    this.waits = true;
    const wait = Math.max(0, this.drawnAt + LEAST_MS_BETWEEN_DRAWS - performance.now());
    setTimeout(() => requestAnimationFrame(async () => {
      this.waits = false;
      this.drawnAt = performance.now();
      await chart(this.element, () => this.#make());
    }), wait);
  }

  #from(series) {
    const { part, x } = this.view;
    if (part === "grown") return series.placeOf("tokens", this.run.growth_timing_tokens);
    return part === "tail" ? series.placeOf(x, 0.75 * (this.train.last(x) ?? 0)) : 0;
  }

  #drawn(series) {
    const axis = this.view.x;
    const places = series.thinned(BUCKETS, this.#from(series));
    return { x: places.map((place) => series.columns[axis][place]), y: places.map((place) => series.columns.value[place]), places };
  }

  #make() {
    const axis = this.view.x;
    const [train, validation] = [this.#drawn(this.train), this.#drawn(this.validation)];
    const told = axis === "tokens" ? "%{x:.3s} tokens" : "%{x:.3e} FLOPs";
    const hover = (name) => `${name} %{y:.4f} nats<br>${told}<extra></extra>`;
    const traces = [
      { type: "scatter", mode: "lines", name: "training loss", ...xy(train), line: { color: colour("series-5"), width: 1.2 }, hovertemplate: hover("training") },
      { type: "scatter", mode: "lines+markers", name: "validation loss", ...xy(validation), line: { color: colour("series-1"), width: 2.2 }, marker: { size: 5 }, hovertemplate: hover("validation") },
    ];
    const { prediction, points } = this.marks();
    const phases = phasesOf(this.run);
    const end = phases.reduce((sum, phase) => sum + phase[axis], 0);
    if (points.length) {
      traces.push({
        type: "scatter", mode: "markers", name: "decision point (of a run that ends there)", x: points.map((one) => one[axis]), y: points.map((one) => one.expected_loss_nats),
        error_y: band(points.map((one) => one.expected_loss_nats), points.map((one) => one.expected_band)),
        marker: { symbol: "diamond", size: 10, color: colour("series-3") }, hovertemplate: hover("expected"),
      });
    }
    if (prediction) {
      traces.push({
        type: "scatter", mode: "markers", name: "predicted final loss (80% of runs)", x: [end], y: [prediction.nats],
        error_y: band([prediction.nats], [[prediction.low_nats, prediction.high_nats]]),
        marker: { symbol: "square", size: 10, color: colour("series-2") }, hovertemplate: hover("predicted final"),
      });
    }
    const columns = [
      { title: "Loss", cell: (row) => row.name }, { title: "Tokens of the run", number: true, cell: (row) => count(row.tokens, 6) },
      { title: "FLOPs", number: true, cell: (row) => flops(row.flops) }, { title: "nats", number: true, cell: (row) => row.value.toFixed(4) },
    ];
    const rows = [["validation", this.validation, validation], ["training", this.train, train]].flatMap(([name, series, drawn]) => drawn.places.map((place) =>
      ({ name, tokens: series.columns.tokens[place], flops: series.columns.flops[place], value: series.columns.value[place] })));
    return { traces, layout: this.#layout(phases, axis), summary: this.#summary(), columns, rows };
  }

  #layout(phases, axis) {
    const layout = {
      xaxis: { title: { text: axis === "tokens" ? "Tokens of the run" : "FLOPs of the run, base included" }, exponentformat: axis === "tokens" ? "B" : "power" },
      yaxis: { title: { text: "Loss (nats)" } }, height: 420, uirevision: `${axis} ${this.view.part}`, shapes: [], annotations: [],
    };
    // The whole run stands on an axis of its whole length: what is still to come is seen too.
    if (this.view.part === "all") layout.xaxis.range = [0, 1.03 * phases.reduce((sum, phase) => sum + phase[axis], 0)];
    if (phases.length > 1) {
      const at = phases[0][axis];
      layout.shapes.push({ type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, line: { color: colour("series-2"), width: 2, dash: "dash" } });
      layout.annotations.push({ x: at, yref: "paper", y: 1, yanchor: "top", xanchor: "left", xshift: 5, showarrow: false, text: `growth ${factor(this.run.growth_factor)}`, font: { color: colour("series-2") } });
    }
    return layout;
  }

  #summary() {
    const at = this.train.last("tokens");
    if (at === null) return "No point yet.";
    return `Loss after ${tokens(at)}: training ${loss(this.train.last("value"))}, validation ${loss(this.validation.last("value"))}; ${this.train.length} training and ${this.validation.length} validation points.`;
  }
}

const xy = ({ x, y }) => ({ x, y });

function band(middles, ends) {
  return {
    type: "data", symmetric: false, thickness: 2, width: 6,
    array: ends.map(([, high], place) => high - middles[place]), arrayminus: ends.map(([low], place) => middles[place] - low),
  };
}
