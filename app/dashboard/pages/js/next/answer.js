// The answer of POST /plan on the page: the sentence, what it costs and brings, regret over spending, and the steps.

import { chart, colour } from "../charts.js";
import { h, table } from "../dom.js";
import { factor, flops, gpuHours, interval, loss, params, percent, tokens } from "../format.js";
import { gpuHoursOf } from "./question.js";

/** An amount of FLOPs in GPU-hours where the state names a GPU, in FLOPs beside it or alone. */
export function spending(state, value) {
  const hours = gpuHoursOf(state, value);
  return hours === null ? flops(value) : gpuHours(hours);
}

/** The sentence, and what stands behind it: cost, saving, net, regret before and after. */
export function headline(answer, state) {
  const runs = answer.steps.flatMap((step) => step.runs);
  const pays = runs.length > 0;
  const how = (value) => spending(state, value);
  const facts = [
    ["Cost", how(answer.cost_flops), `${runs.length} run${runs.length === 1 ? "" : "s"} in ${answer.steps.length} step${answer.steps.length === 1 ? "" : "s"}`],
    ["Expected saving", how(answer.saved_flops), `80% interval ${interval(answer.saved_flops_interval, how)}, of training from scratch`],
    ["Saving less cost", how(answer.net_flops), answer.net_flops > 0 ? "they pay for themselves" : "they cost more than they save on these targets"],
    ["Expected regret", `${answer.regret_now_nats.toFixed(4)} \u2192 ${loss(answer.regret_after_nats)}`, "above the best that could be decided, before and after"],
  ];
  return h("section", { class: "card", "aria-label": "Answer" },
    h("p", { class: "sentence" }, answer.sentence),
    h("p", { class: "small soft" }, h("span", { class: pays ? "tag info" : "tag" }, pays ? "lowers the regret" : "nothing to run"),
      ` ${answer.num_weighed} runs and bundles were weighed, by guideline ${answer.guideline.name}, version ${answer.guideline.version}. It stands on the guideline's draws, and on how far its laws were seen to miss.`),
    pays ? h("dl", { class: "figures" }, facts.map(([name, value, more]) =>
      h("div", {}, h("dt", {}, name), h("dd", {}, h("span", { class: "figure" }, value), h("span", { class: "small" }, more))))) : null);
}

/** The decisions that the runs are for. */
export function decisions(answer) {
  const today = { grow: "grow", scratch: "train from scratch", smaller: "train a smaller model" };
  return h("section", { class: "card" }, h("h2", {}, "What they are for"),
    table([
      { title: "Target", cell: (one) => params(one.target_params) },
      { title: "Token budget", number: true, cell: (one) => tokens(one.token_budget) },
      { title: "Decided today", cell: (one) => today[one.decision] },
      { title: "Expected regret of it", number: true, cell: (one) => loss(one.regret_nats) },
    ], answer.decisions, { caption: "Decisions, and how much better the best arm is expected to be" }));
}

/** Draw expected regret against what has been spent, step by step, into `element`. */
export function drawRegret(element, answer, state) {
  const inHours = gpuHoursOf(state, 1) !== null;
  const unit = inHours ? "GPU-hours" : "FLOPs";
  let spent = 0;
  const points = [{ step: 0, spent: 0, regret: answer.regret_now_nats, what: "today" }];
  for (const [place, step] of answer.steps.entries()) {
    spent += step.cost_flops;
    points.push({ step: place + 1, spent: inHours ? gpuHoursOf(state, spent) : spent, regret: step.regret_after_nats, what: `after step ${place + 1}` });
  }
  // Names of points that stand closer than a name is long would cover each other; pointing at one tells its own.
  const apart = 0.15 * points.at(-1).spent;
  const named = points.map((one, place) => (place + 1 < points.length && points[place + 1].spent - one.spent < apart ? "" : one.what));
  const amount = (value) => (inHours ? gpuHours(value) : flops(value));
  return chart(element, () => ({
    traces: [{
      x: points.map((one) => one.spent), y: points.map((one) => one.regret), mode: "lines+markers+text", type: "scatter",
      text: named, textposition: "top right", cliponaxis: false,
      line: { color: colour("series-1"), width: 2.5, shape: "hv" }, marker: { color: colour("series-1"), size: 9 },
      hovertemplate: points.map((one) => `${one.what}: ${loss(one.regret)}, ${amount(one.spent)} spent<extra></extra>`),
    }],
    layout: {
      xaxis: { title: { text: `spent on runs (${unit})` }, rangemode: "tozero", range: [0, points.at(-1).spent * 1.15] },
      yaxis: { title: { text: "expected regret (nats)", standoff: 12 }, rangemode: "tozero", range: [0, points[0].regret * 1.2] }, showlegend: false,
      margin: { l: 90, r: 40, t: 20, b: 50 },
    },
    summary: `Expected regret falls from ${loss(points[0].regret)} to ${loss(points.at(-1).regret)} over ${amount(points.at(-1).spent)}.`,
    columns: [
      { title: "Step", cell: (one) => one.what }, { title: "Spent", number: true, cell: (one) => amount(one.spent) },
      { title: "Expected regret", number: true, cell: (one) => loss(one.regret) },
    ],
    rows: points,
  }));
}

/** The steps in their order. */
export function steps(answer, state) {
  return h("section", {}, h("h2", {}, "Steps, in the order in which to make them"),
    h("ol", { class: "steps" }, answer.steps.map((step, place) => h("li", { class: "card" },
      h("div", { class: "row between" },
        h("h3", {}, `${place + 1}. ${step.runs.length === 1 ? told(step.runs[0]) : `${step.runs.length} runs that teach together`}`),
        h("div", { class: "row" }, h("span", { class: "tag" }, `regret ${step.regret_before_nats.toFixed(4)} \u2192 ${loss(step.regret_after_nats)}`), h("span", { class: "tag" }, spending(state, step.cost_flops)),
          h("span", { class: "tag info" }, `${percent(step.change_chance)} chance to change a decision`))),
      h("p", { class: "why" }, step.why),
      table([
        { title: "Run", cell: told },
        { title: "Growth timing d", number: true, cell: (run) => tokens(run.growth_timing_tokens) },
        { title: "Then trained on", number: true, cell: (run) => tokens(run.tokens) },
        { title: "Costs", number: true, cell: (run) => spending(state, run.compute_flops) },
        { title: "Recipe", cell: (run) => (run.job ? `${run.job.name}, seed ${run.job.init_seed}` : "none here") },
      ], step.runs, { caption: `Runs of step ${place + 1}` })))));
}

/** A run in words. */
export function told(run) {
  if (run.kind === "grown") return `Grow ${factor(run.growth_factor)} to ${params(run.params)}`;
  return run.kind === "scratch" ? `${params(run.params)} from scratch` : `${params(run.params)} alone`;
}
