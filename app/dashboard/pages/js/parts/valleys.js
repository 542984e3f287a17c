// Valleys: delta (or loss) over growth timing at one target, what was run beside what the fitted laws say.

import { chart, colour } from "../charts.js";
import { fill, h } from "../dom.js";
import { count, delta, factor, flops, interval, loss, params, tokens } from "../format.js";
import { field, select } from "./fields.js";
import { seriesOf } from "./curves.js";

const SHOWN = { delta: "delta: grown \u2212 scratch", loss: "final loss" };

/** Draw the valleys of one target into `element`; `state` holds `target` (its place) and `shown`, changed through `onChange`. */
export async function drawValleys(element, valleys, state, onChange) {
  const targets = [...new Set(valleys.map((one) => one.target_params))];
  const target = targets.includes(Number(state.target)) ? Number(state.target) : targets[0];
  const shown = SHOWN[state.shown] ? state.shown : "delta";
  const mine = valleys.filter((one) => one.target_params === target);
  const area = h("div", {});
  fill(element, h("div", { class: "controls" },
    targets.length > 1 && field("Target", select("target", targets.map((one) => [String(one), params(one)]), String(target), (value) => onChange({ target: value }))),
    field("Shown", select("shown", Object.entries(SHOWN), shown, (value) => onChange({ shown: value })))), area);
  const orders = new Set(mine.map((one) => one.order)).size > 1;
  const nameOf = (one) => `g ${factor(one.growth_factor)}, ${flops(one.compute_flops)}${orders ? `, ${one.order}` : ""}`;
  await chart(area, () => ({
    traces: mine.flatMap((one, place) => (shown === "delta" ? deltaTraces(one, place, nameOf(one)) : lossTraces(one, place, nameOf(one)))),
    layout: {
      height: 420, xaxis: { title: { text: "growth timing d: tokens before growth" }, type: "log" }, yaxis: { title: { text: shown === "delta" ? "delta (nats); below 0 growth helps" : "final loss (nats)" }, exponentformat: "none" },
    },
    summary: `${SHOWN[shown]} over growth timing for the target of ${params(target)}: ${mine.map(nameOf).join("; ")}`,
    columns: [
      { title: "Valley", cell: (row) => nameOf(row.valley) }, { title: "Timing d", number: true, cell: ({ point }) => tokens(point.growth_timing_tokens) },
      { title: "Grown", number: true, cell: ({ point }) => loss(point.grown_loss_nats) }, { title: "Scratch", number: true, cell: ({ point }) => loss(point.scratch_loss_nats) },
      { title: "Delta", number: true, cell: ({ point }) => delta(point.delta_nats) }, { title: "80% by seed noise", number: true, cell: ({ point }) => interval([point.low_nats, point.high_nats], delta) },
      { title: "Seeds grown, scratch", number: true, cell: ({ point }) => `${point.num_grown_seeds}, ${point.num_scratch_seeds}` }, { title: "Tuned alike", cell: ({ point }) => (point.comparable ? "yes" : "no") },
    ],
    rows: mine.flatMap((valley) => valley.observed.map((point) => ({ valley, point }))),
  }));
}

function deltaTraces(valley, place, name) {
  const shade = colour(seriesOf(place).name);
  const soft = colour(seriesOf(place).name, 0.12);
  const { predicted, observed } = valley;
  const edge = (key, more) => ({ x: predicted.map((one) => one.growth_timing_tokens), y: predicted.map((one) => one[key]), mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: name, ...more });
  const laws = predicted.length ? [
    edge("low_nats"), edge("high_nats", { fill: "tonexty", fillcolor: soft }),
    edge("delta_nats", {
      line: { width: 2, color: shade }, hoverinfo: undefined, text: predicted.map((one) => `the laws say ${delta(one.delta_nats)} (80%: ${interval([one.low_nats, one.high_nats], delta)})<br>d ${count(one.growth_timing_tokens)} tokens, ${name}`), hovertemplate: "%{text}<extra></extra>",
    }),
  ] : [];
  return [...laws, {
    x: observed.map((one) => one.growth_timing_tokens), y: observed.map((one) => one.delta_nats), name, legendgroup: name, mode: "markers",
    marker: { size: 9, color: shade, symbol: observed.map((one) => (one.comparable ? "circle" : "circle-open")) },
    error_y: { type: "data", symmetric: false, array: observed.map((one) => one.high_nats - one.delta_nats), arrayminus: observed.map((one) => one.delta_nats - one.low_nats), color: shade, thickness: 1.2, width: 3 },
    text: observed.map((one) => `observed ${delta(one.delta_nats)} (80% by seeds: ${interval([one.low_nats, one.high_nats], delta)})<br>d ${count(one.growth_timing_tokens)} tokens, ${name}${one.comparable ? "" : "<br>grown and scratch were not tuned alike"}`),
    hovertemplate: "%{text}<extra></extra>",
  }];
}

function lossTraces(valley, place, name) {
  const shade = colour(seriesOf(place).name);
  const { observed } = valley;
  const half = (one) => (one.high_nats - one.low_nats) / 2;
  return [{
    x: observed.map((one) => one.growth_timing_tokens), y: observed.map((one) => one.grown_loss_nats), name, mode: "lines+markers", line: { color: shade, width: 1.5 }, marker: { size: 9 },
    error_y: { type: "data", array: observed.map(half), color: shade, thickness: 1.2, width: 3 },
    text: observed.map((one) => `grown: ${loss(one.grown_loss_nats)}, scratch: ${loss(one.scratch_loss_nats)}<br>d ${count(one.growth_timing_tokens)} tokens, ${name}`), hovertemplate: "%{text}<extra></extra>",
  }, {
    x: observed.map((one) => one.growth_timing_tokens), y: observed.map((one) => one.scratch_loss_nats), name: `scratch, ${flops(valley.compute_flops)}`, mode: "lines", line: { color: shade, dash: "dot", width: 2 },
    text: observed.map((one) => `scratch: ${loss(one.scratch_loss_nats)}, ${flops(valley.compute_flops)}`), hovertemplate: "%{text}<extra></extra>",
  }];
}
