// Curves of runs laid over each other, with the speedup of the point that the reader looks at.
//
// Everything computed comes from GET /runs/{id}/curve; here it is only drawn and told.

import { get } from "../api.js";
import { chart, colour } from "../charts.js";
import { fill, h, table } from "../dom.js";
import { count, figure, flops, loss, percent, tokens } from "../format.js";
import { linkTo } from "../url.js";

export const MOST_CURVES = 12;
const DASHES = ["solid", "dash"];
const POINTS_A_CURVE = 2000;

/** The nth curve's colour by its name in base.css, and its dash. */
export const seriesOf = (place) => ({ name: `series-${(place % 6) + 1}`, dash: DASHES[Math.floor(place / 6) % 2], key: `key key-${(place % 6) + 1}` });

// Plotly reads a few tags in texts; a run's name is text.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/** Metrics that any of the runs has points of: [["validation_loss|web", "validation_loss on web"], ...], the decision metric first. */
export async function metricsOf(runs, { signal } = {}) {
  const found = new Map();
  for (const { metrics } of await Promise.all(runs.map((run) => get(`runs/${run.run_id}/metrics`, {}, { signal })))) {
    for (const one of metrics) found.set(`${one.metric}|${one.dataset}`, one.dataset ? `${one.metric} on ${one.dataset}` : one.metric);
  }
  return [...found];
}

/** The curves of `runs`; `against` is "control" (each run's own), a run's id, or "" for none. Only runs of one cohort are held against each other. */
export function loadCurves(runs, { metric, dataset, against }, { signal } = {}) {
  return Promise.all(runs.map(async (run, shade) => {
    const other = against === "control" ? run.control_id : against === run.run_id ? null : against?.cohort === run.cohort ? against.run_id : null;
    const curve = await get(`runs/${run.run_id}/curve`, { metric, dataset, against: other, max_points: POINTS_A_CURVE }, { signal });
    return { run, curve, shade };
  }));
}

/** A speedup with its sign: +37% (FLOPs saved: other / own - 1). */
export const speedup = (value) => (value === null || value === undefined ? "\u2013" : `${value >= 0 ? "+" : ""}${percent(value, 1)}`);

const amount = (value, unit) => (unit === "nats" ? loss(value) : `${figure(value, 4)} ${unit === "1" ? "" : unit}`.trim());

/** What one point says, in a sentence or three. */
export function told(run, curve, point, nameOf) {
  const basis = point.is_final ? "final loss" : "mid-schedule";
  const parts = [`${run.name}: ${amount(point.value, curve.unit)} (${basis}) at ${tokens(point.tokens)}, ${flops(point.compute_flops)}.`];
  if (curve.against && point.speedup !== null) {
    parts.push(`${nameOf(curve.against)} first had this loss at ${flops(point.against_flops)}: speedup ${speedup(point.speedup)} FLOPs.`);
    parts.push(point.is_final
      ? "Mixed basis: this run's final loss is held against a mid-schedule loss; see the table of final losses."
      : "Both are mid-schedule losses of one pair of runs, without an interval.");
  } else if (curve.against) {
    parts.push(`${nameOf(curve.against)} is not seen at this loss, so there is no speedup to read here.`);
  }
  return parts;
}

/**
 * Draw the curves. `view`: `{over: "flops" | "tokens", x: "log" | "linear", y: ...}`; `reading` is the element that tells the
 * point that the reader looks at; `nameOf(id)` gives a run's name.
 */
export async function drawCurves(element, reading, loaded, view, nameOf) {
  const overFlops = view.over !== "tokens";
  const unit = loaded.find((one) => one.curve.unit)?.curve.unit ?? "";
  const first = loaded[0].curve;
  const what = first.dataset ? `${first.metric} on ${first.dataset}` : first.metric;
  // Drawing anew tells of the point under the mouse, in the new curves: who listened for the old ones must be gone by then.
  element.querySelector(":scope > .chart")?.removeAllListeners?.("plotly_hover");
  const box = await chart(element, () => ({
    traces: loaded.flatMap((one, place) => lines(one, place, overFlops, nameOf)),
    layout: {
      height: 430, showlegend: false, margin: { l: 70, r: 20, t: 10, b: 55 },
      xaxis: { title: { text: overFlops ? "training FLOPs, base included" : "tokens, base phase included" }, type: view.x },
      yaxis: { title: { text: unit && unit !== "1" ? `${plain(what)} (${unit})` : plain(what) }, type: view.y, exponentformat: "none" },
    },
    summary: `${what} of ${loaded.length} ${loaded.length === 1 ? "run" : "runs"} over ${overFlops ? "training FLOPs" : "tokens"}`,
    columns: [
      { title: "Run", cell: (row) => row.run.name }, { title: "Tokens", number: true, cell: (row) => count(row.point.tokens) },
      { title: "FLOPs", number: true, cell: (row) => flops(row.point.compute_flops) },
      { title: "Value", number: true, cell: (row) => amount(row.point.value, row.curve.unit) },
      { title: "Basis", cell: (row) => (row.point.is_final ? "final" : "mid-schedule") },
      { title: "Speedup at the same loss", number: true, cell: (row) => speedup(row.point.speedup) },
    ],
    rows: loaded.flatMap(({ run, curve }) => curve.points.map((point) => ({ run, curve, point }))),
  }));
  box.on("plotly_hover", ({ points: [hit] }) => {
    const [place, index] = hit.customdata;
    const { run, curve } = loaded[place];
    fill(reading, told(run, curve, curve.points[index], nameOf).map((text) => h("p", {}, text)));
  });
  const thinned = loaded.filter(({ curve }) => curve.num_points > curve.points.length);
  fill(reading, h("p", { class: "soft" }, "Point at a curve to read its loss", loaded.some(({ curve }) => curve.against) ? " and the speedup at the same loss." : ".",
    thinned.length ? ` ${thinned.length} long ${thinned.length === 1 ? "curve is" : "curves are"} drawn with ${count(POINTS_A_CURVE)} of their points.` : ""));
}

function lines({ run, curve, shade: number }, place, overFlops, nameOf) {
  const { name, dash } = seriesOf(number);
  const own = curve.points.map((point, index) => ({ point, index }));
  const last = own.filter(({ point }) => point.is_final);
  const trace = (rows, more) => ({
    x: rows.map(({ point }) => (overFlops ? point.compute_flops : point.tokens)),
    y: rows.map(({ point }) => point.value),
    customdata: rows.map(({ index }) => [place, index]),
    text: rows.map(({ point }) => told(run, curve, point, nameOf).map(plain).join("<br>")),
    hovertemplate: "%{text}<extra></extra>", name: plain(run.name), legendgroup: String(place), ...more,
  });
  const shade = colour(name);
  return [
    trace(own, { mode: own.length > 60 ? "lines" : "lines+markers", line: { color: shade, dash, width: 2 }, marker: { size: 5, color: shade } }),
    trace(last, { mode: "markers", marker: { size: 11, symbol: "diamond", color: shade, line: { width: 1, color: colour("surface") } }, showlegend: false }),
  ];
}

/** Speedups of final losses alone, a row a run; null where none was asked for. */
export function finals(loaded, nameOf) {
  const rows = loaded.filter(({ curve }) => curve.final);
  if (!rows.length) return null;
  return h("div", {}, table([
    { title: "Run", cell: ({ run }) => h("a", { href: linkTo("run.html", { id: run.run_id }) }, run.name) },
    { title: "Final loss", number: true, cell: ({ run }) => loss(run.final_loss) },
    { title: "Spent", number: true, cell: ({ run }) => flops(run.compute_flops) },
    { title: "Scratch would need", number: true, cell: ({ curve }) => flops(curve.final.scratch_flops) },
    { title: "Speedup (FLOPs)", number: true, cell: ({ curve }) => speedup(curve.final.speedup) },
    { title: "How it was read", cell: ({ curve }) => curve.final.detail },
  ], rows, { caption: "Speedup at equal final loss: FLOPs with which scratch ends there / FLOPs of the run \u2212 1. Final losses only; single runs, so without an interval." }));
}
