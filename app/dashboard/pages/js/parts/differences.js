// What changed from one version to another, and what both answer to a few standard questions.

import { h, table } from "../dom.js";
import { count, delta, factor, figure, flops, interval, params, percent, tokens } from "../format.js";
import { linkTo } from "../url.js";

const range = (one) => (one ? `${figure(one.median)} (80%: ${interval([one.low, one.high])})` : "\u2013");

/** The parts of a comparison as GET /guidelines/{id}/diff/{other} gives it. */
export function differences({ before, after, changes }) {
  const titles = [`Version ${before.version}`, `Version ${after.version}`];
  const moved = Object.entries(changes.deltas_nats);
  const same = "Nothing moved.";
  return [
    h("section", { class: "card" }, h("h2", {}, "What both answer"), changes.questions.length ? table([
      { title: "Target", number: true, cell: (one) => params(one.target_params) }, { title: "Budget", number: true, cell: (one) => flops(one.compute_flops) },
      { title: titles[0], cell: (one) => answer(one.before, before) }, { title: titles[1], cell: (one) => answer(one.after, after) },
    ], changes.questions, { caption: "The smallest and the largest target either has seen, at the most compute it was run with, and the largest at four times that" }) : h("p", {}, "Neither has seen a run to ask about.")),
    h("div", { class: "columns" },
      h("section", { class: "card" }, h("h2", {}, "Weights of growth laws"), Object.keys(changes.weights).length ? table([
        { title: "Law", cell: ([name]) => name.replaceAll("_", " ") }, { title: titles[0], number: true, cell: ([, one]) => percent(one.before) }, { title: titles[1], number: true, cell: ([, one]) => percent(one.after) },
      ], Object.entries(changes.weights), { caption: "Share of the draws that answer" }) : h("p", {}, "Neither has fitted laws.")),
      h("section", { class: "card" }, h("h2", {}, "Runs and noise"),
        h("p", {}, `Fitted: ${changes.kind.before} \u2192 ${changes.kind.after}.`), h("p", {}, `Seed spread of one run: ${figure(changes.noise_sd_nats.before)} \u2192 ${figure(changes.noise_sd_nats.after)} nats.`),
        runs("Came in", changes.runs_added), runs("Went", changes.runs_removed))),
    h("section", { class: "card" }, h("h2", {}, "Observed deltas that moved"), moved.length ? table([
      { title: "Design", cell: ([name]) => name }, { title: titles[0], number: true, cell: ([, one]) => delta(one.before) }, { title: titles[1], number: true, cell: ([, one]) => delta(one.after) },
    ], moved, { caption: "By design; a dash where a version does not hold it" }) : h("p", {}, same)),
    h("section", { class: "card" }, h("h2", {}, "Parameters"), changes.parameters.length ? table([
      { title: "Law", cell: (one) => one.law.replaceAll("_", " ") }, { title: "Parameter", cell: (one) => h("code", {}, one.name) }, { title: titles[0], number: true, cell: (one) => range(one.before) }, { title: titles[1], number: true, cell: (one) => range(one.after) },
    ], changes.parameters, { caption: "Median and central 80% over the draws" }) : h("p", {}, "Neither has fitted laws.")),
  ];
}

function answer(one, version) {
  const by = one.answered_by === version.id ? null : h("span", { class: "soft small" }, ` answered by ${one.answered_by}`);
  const grade = h("span", { class: "tag" }, one.grade);
  if (one.decision !== "grow") return [one.decision, " ", grade, by];
  return [`grow ${factor(one.growth_factor)} after ${tokens(one.growth_timing_tokens)}`, one.delta_nats === null ? "" : `: ${delta(one.delta_nats)} (80%: ${interval(one.delta_interval, delta)}) `, grade, by];
}

function runs(title, ids) {
  if (!ids.length) return h("p", {}, `${title}: none.`);
  return h("details", {}, h("summary", {}, `${title}: ${count(ids.length)} ${ids.length === 1 ? "run" : "runs"}`), h("ul", {}, ids.map((id) => h("li", {}, h("a", { href: linkTo("run.html", { id }) }, id)))));
}
