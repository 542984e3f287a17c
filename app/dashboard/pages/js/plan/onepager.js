// The one-pager: four arms at one compute, what they cost and where they may end, with the assumptions frozen below. And as CSV.

import { download, fill, h, table } from "../dom.js";
import { chance, count, figure, flops, gpuHours, money, params } from "../format.js";
import { dayOf, rowsOf, when } from "./costs.js";
import { chosenArm } from "./sentence.js";

export function drawOnePager(element, answer, state, assumptions) {
  const rows = rowsOf(answer, assumptions);
  const chosen = chosenArm(answer)?.arm ?? null;
  const dash = (reason) => h("span", { class: "why", title: reason }, "not given");
  const loss = (row, name) => (row.arm.loss_nats ? row.arm.loss_nats[name].toFixed(3) : dash(row.arm.no_loss_reason));
  const columns = [
    { title: "Plan", cell: (row) => [h("strong", {}, row.title), row.arm.arm === chosen && [" ", h("span", { class: "tag good" }, "recommended")], h("div", { class: "why" }, describe(row.arm))] },
    { title: "GPU-hours", number: true, cell: (row) => count(row.hours) },
    { title: "Money", number: true, cell: (row) => money(row.money, assumptions.currency) },
    { title: assumptions.numGpus ? `Days on ${count(assumptions.numGpus)} GPUs` : "Days", number: true, cell: (row) => figure(row.days) },
    { title: "Final loss P10 (nats)", number: true, cell: (row) => loss(row, "p10") },
    { title: "P50", number: true, cell: (row) => loss(row, "p50") },
    { title: "P90", number: true, cell: (row) => loss(row, "p90") },
    { title: "Chance to beat scratch", number: true, cell: (row) => (row.arm.chance_to_beat_scratch === null ? row.arm.arm === "scratch" ? "\u2013" : dash(row.arm.no_chance_reason) : chance(row.arm.chance_to_beat_scratch)) },
    { title: "Worst-case regret (nats)", number: true, cell: (row) => regret(row.arm) ?? dash(row.arm.no_loss_reason) },
    { title: "Decision dates", cell: (row) => h("ul", { class: "dates" }, row.dates.map((one) => h("li", {}, `${when(one)}: ${one.what}`))) },
  ];
  const drawn = table(columns, rows, { caption: "Four ways to spend the same compute; growing also pays its pilot and re-tuning." });
  drawn.querySelectorAll("tbody tr").forEach((row, index) => row.classList.toggle("chosen", rows[index].arm.arm === chosen));
  fill(element, h("h2", {}, "The plan on one page"), drawn, reasons(rows), h("h3", {}, "Assumptions"), h("ul", { class: "assumptions" }, assumed(answer, state, assumptions).map((text) => h("li", {}, text))));
}

function describe(arm) {
  if (arm.params === null) return arm.no_loss_reason;
  const size = `${count(arm.params)} on ${count(arm.tokens)} tokens`;
  return arm.growth_factor === null ? size : `\u00d7${figure(arm.growth_factor)} after ${count(arm.growth_timing_tokens)} tokens; ${size}`;
}

function regret(arm) {
  if (!arm.worst_regret) return null;
  const { nats, gpu_hours: hours, flops: lost } = arm.worst_regret;
  const price = hours !== null ? gpuHours(hours) : lost !== null ? flops(lost) : null;
  return [nats.toFixed(3), price && h("div", { class: "why" }, price)];
}

/** Why numbers are not given, once each. */
function reasons(rows) {
  const told = new Set();
  for (const { arm } of rows) {
    if (!arm.loss_nats && arm.no_loss_reason) told.add(arm.no_loss_reason);
    if (arm.chance_to_beat_scratch === null && arm.arm !== "scratch" && arm.no_chance_reason) told.add(arm.no_chance_reason);
  }
  return told.size ? h("p", { class: "small soft" }, "Not given: ", [...told].map((text) => text.replace(/\.$/, "")).join("; "), ".") : null;
}

function assumed(answer, state, assumptions) {
  const { guideline } = answer;
  const texts = [
    `Guideline ${guideline.id} (${guideline.name}), version ${guideline.version}, ${guideline.num_runs} runs; answered ${dayOf(new Date())}${answer.id ? ` as ${answer.id}` : ""}.`,
    `Target of ${params(answer.target_model.params)}; budget ${flops(answer.flops.scratch)} (${count(answer.flops.scratch / answer.target_model.flops_per_token)} tokens from scratch); every row costs this much.`,
    answer.arms[0].gpu_hours === null ? "No hardware given, so no GPU-hours." : `GPU of ${state.peak} TFLOP/s peak at ${state.utilisation}% utilisation; ${assumptions.numGpus ? `${count(assumptions.numGpus)} GPUs` : "number of GPUs not given"}; ${assumptions.price === null ? "no price given" : `${assumptions.currency}${assumptions.price} a GPU-hour`}.`,
    `Pilot ${gpuHours(assumptions.pilotHours)} and re-tuning ${gpuHours(assumptions.retuneHours)}, the planner's own figures, are inside the total of growing and run before it.`,
    `Support: ${answer.support.grade}. ${answer.support.reason}`,
    "Losses are one run's, seed noise included; dates assume all GPUs throughout.",
  ];
  const regretful = answer.arms.find((arm) => arm.worst_regret);
  if (regretful) texts.push(`Worst-case regret: the largest in any of ${regretful.worst_regret.num_draws} draws of the laws, against the best of scratch, best fixed size and growing; GPU-hours are what scratch would need to make up for it.`);
  return texts;
}

const CSV = [
  ["plan", (row) => row.arm.arm], ["gpu_hours", (row) => row.hours], ["of_which_pilot_and_retuning_gpu_hours", (row) => row.before],
  ["money", (row) => row.money], ["currency", (row, a) => (row.money === null ? null : a.currency)], ["days", (row) => row.days],
  ["final_loss_p10_nats", (row) => row.arm.loss_nats?.p10], ["final_loss_p50_nats", (row) => row.arm.loss_nats?.p50], ["final_loss_p90_nats", (row) => row.arm.loss_nats?.p90],
  ["chance_to_beat_scratch", (row) => row.arm.chance_to_beat_scratch], ["worst_regret_nats", (row) => row.arm.worst_regret?.nats],
  ["worst_regret_gpu_hours", (row) => row.arm.worst_regret?.gpu_hours], ["compute_flops", (row) => row.arm.compute_flops],
  ["growth_factor", (row) => row.arm.growth_factor], ["growth_timing_tokens", (row) => row.arm.growth_timing_tokens],
  ["decision_dates", (row) => row.dates.map((one) => `${when(one)} ${one.what}`).join("; ")], ["not_given_because", (row) => row.arm.no_loss_reason ?? (row.arm.arm === "scratch" ? null : row.arm.no_chance_reason)],
  ["guideline_id", (row, a, answer) => answer.guideline.id], ["guideline_version", (row, a, answer) => answer.guideline.version],
  ["recommendation_id", (row, a, answer) => answer.id], ["answered_on", () => dayOf(new Date())],
];

/** The same rows as a file: full precision, empty where not given. */
export function downloadCsv(answer, assumptions) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [CSV.map(([name]) => name), ...rowsOf(answer, assumptions).map((row) => CSV.map(([, of]) => of(row, assumptions, answer)))];
  download("growthlaw-plan.csv", `${lines.map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`, "text/csv");
}
