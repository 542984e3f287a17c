// Predicted against observed: every pair that laws were asked about before they had seen it, and how often the intervals held.

import { chart, colour } from "../charts.js";
import { h, table } from "../dom.js";
import { count, delta, factor, figure, flops, interval, percent, tokens } from "../format.js";
import { linkTo } from "../url.js";

const HOW = {
  target_params: ["held out by target size", "series-1", "circle"], compute: ["held out by compute", "series-2", "square"],
  before_seen: ["predicted before the run was seen", "series-3", "diamond"],
};
const PROMISED = 0.8;

/** Predicted against observed deltas with their 80% intervals, and the line on which they would agree. */
export function drawPredicted(element, predicted) {
  const kinds = Object.keys(HOW).filter((how) => predicted.some((one) => one.how === how));
  const all = predicted.flatMap((one) => [one.observed_nats, one.low_nats, one.high_nats]);
  const ends = [Math.min(...all, 0), Math.max(...all, 0)];
  const inside = predicted.filter((one) => one.is_inside).length;
  return chart(element, () => ({
    traces: [
      { x: ends, y: ends, mode: "lines", line: { color: colour("line-strong"), dash: "dot" }, hoverinfo: "skip", showlegend: false },
      ...kinds.map((how) => {
        const [name, shade, symbol] = HOW[how];
        const mine = predicted.filter((one) => one.how === how);
        return {
          x: mine.map((one) => one.observed_nats), y: mine.map((one) => one.predicted_nats), name, mode: "markers",
          marker: { color: colour(shade), size: 9, symbol: mine.map((one) => (one.is_inside ? symbol : `${symbol}-open`)), line: { width: 2, color: colour(shade) } },
          error_y: { type: "data", symmetric: false, array: mine.map((one) => one.high_nats - one.predicted_nats), arrayminus: mine.map((one) => one.predicted_nats - one.low_nats), color: colour(shade, 0.5), thickness: 1.2, width: 0 },
          text: mine.map((one) => `predicted ${delta(one.predicted_nats)} (80%: ${interval([one.low_nats, one.high_nats], delta)})<br>observed ${delta(one.observed_nats)}${one.is_inside ? "" : ", outside"}<br>g ${factor(one.growth_factor)}, d ${tokens(one.growth_timing_tokens)}, ${flops(one.compute_flops)}`),
          hovertemplate: "%{text}<extra></extra>",
        };
      }),
    ],
    layout: { height: 420, xaxis: { title: { text: "observed delta (nats)" }, exponentformat: "none" }, yaxis: { title: { text: "predicted delta (nats)" }, exponentformat: "none" } },
    summary: `Predicted against observed deltas of ${predicted.length} unseen cases: ${inside} inside their 80% intervals, hollow marks outside`,
    columns: [
      { title: "How", cell: (one) => HOW[one.how][0] }, { title: "Run", cell: (one) => h("a", { href: linkTo("run.html", { id: one.run_id }) }, one.run_id) }, { title: "Target", number: true, cell: (one) => count(one.target_params) },
      { title: "g", number: true, cell: (one) => factor(one.growth_factor) }, { title: "d", number: true, cell: (one) => tokens(one.growth_timing_tokens) },
      { title: "Predicted", number: true, cell: (one) => delta(one.predicted_nats) }, { title: "80%", number: true, cell: (one) => interval([one.low_nats, one.high_nats], delta) },
      { title: "Observed", number: true, cell: (one) => delta(one.observed_nats) }, { title: "Inside", cell: (one) => (one.is_inside ? "yes" : "no") },
    ],
    rows: predicted,
  }));
}

/** How often 80% intervals held, each share with its own interval, beside what was promised. */
export function drawCoverage(element, calibration) {
  const rows = [...calibration].reverse();
  return chart(element, () => ({
    traces: [{
      x: rows.map((one) => one.share), y: rows.map((one) => one.what), mode: "markers", marker: { size: 12, color: colour("series-1") }, showlegend: false,
      error_x: { type: "data", symmetric: false, array: rows.map((one) => one.interval[1] - one.share), arrayminus: rows.map((one) => one.share - one.interval[0]), color: colour("series-1"), thickness: 2, width: 6 },
      text: rows.map((one) => `${one.hits} of ${one.cases} inside: ${percent(one.share)} (80%: ${interval(one.interval, percent)})`), hovertemplate: "%{text}<extra></extra>",
    }],
    layout: {
      height: 150 + 60 * rows.length, xaxis: { title: { text: "share of observations inside their 80% interval" }, range: [0, 1.02], tickformat: ".0%" }, yaxis: { type: "category" },
      shapes: [{ type: "line", x0: PROMISED, x1: PROMISED, y0: 0, y1: 1, yref: "paper", line: { color: colour("series-2"), dash: "dash", width: 2 } }],
      annotations: [{ x: PROMISED, y: 1.02, yref: "paper", yanchor: "bottom", text: "promised", showarrow: false, font: { color: colour("series-2") } }], margin: { l: 60, r: 20, t: 30, b: 50 },
    },
    summary: rows.map((one) => `${one.what}: ${one.hits} of ${one.cases} inside, promised 80%`).join("; "),
    columns: [{ title: "Which", cell: (one) => one.what }, { title: "Inside", number: true, cell: (one) => `${one.hits} of ${one.cases}` }, { title: "Share", number: true, cell: (one) => percent(one.share) }, { title: "Its own 80% interval", number: true, cell: (one) => interval(one.interval, percent) }],
    rows: calibration,
  }));
}

/** The scores behind the picture, a row a way of holding out; null where nothing was held out. */
export function heldOutTable(heldOut) {
  const rows = Object.entries(heldOut ?? {}).filter(([, one]) => one && typeof one === "object" && "rmse_delta_nats" in one);
  if (!rows.length) return null;
  return table([
    { title: "Held out", cell: ([how]) => HOW[how]?.[0] ?? how }, { title: "Pairs", number: true, cell: ([, one]) => one.num_pairs },
    { title: "Error of delta (nats)", number: true, cell: ([, one]) => `${figure(one.rmse_delta_nats)} (80%: ${interval(one.rmse_interval)})` },
    { title: "Right signs", number: true, cell: ([, one]) => `${one.sign_hits} of ${one.sign_cases} (80%: ${interval(one.sign_interval, percent)})` },
    { title: "Right factor", number: true, cell: ([, one]) => (one.best_factor_cases ? `${one.best_factor_hits} of ${one.best_factor_cases}` : "not asked") },
    { title: "Regret (nats)", number: true, cell: ([, one]) => `${figure(one.regret_nats)} (80%: ${interval(one.regret_interval)})` },
  ], rows, { caption: "Scores of the very average that answers, on folds that no law nor weight had seen" });
}
