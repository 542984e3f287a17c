// Saved plans: answers kept by the service, side by side under one planner's assumptions.

import { get, listAll } from "../api.js";
import { fill, h, table } from "../dom.js";
import { chance, count, delta, factor, figure, interval, money, percent, time, tokens } from "../format.js";
import { empty, show } from "../shell.js";
import { rowsOf } from "./costs.js";
import { chosenArm } from "./sentence.js";

const MOST_LISTED = 12;
const MOST_COMPARED = 4;

/** Which plans the link compares. */
export const comparedIn = (state) => (state.compare ?? "").split(",").filter(Boolean).slice(0, MOST_COMPARED);

/**
 * The list of saved plans and the comparison of those chosen. `onChoose(ids)` is told the new choice; `assumptions()` gives
 * the planner's own figures as they are then.
 */
export async function drawSaved(element, state, assumptions, onChoose) {
  const list = h("div", {});
  const compared = h("div", {});
  fill(element, h("h2", {}, "Saved plans"), list, compared);
  await show(list, "saved plans", () => listAll("recommendations", {}, { most: MOST_LISTED }), async (kept) => {
    if (!kept.length) return void empty(list, "No plan is saved yet", h("p", {}, "Save keeps an answer with its guideline, its version and its question, unchanged for good."));
    const details = await Promise.all(kept.map(({ id }) => get(`recommendations/${id}`)));
    const chosen = new Set(comparedIn(state));
    const box = (one) => h("input", { type: "checkbox", checked: chosen.has(one.id), "aria-label": `Compare ${titleOf(one)}`, onchange: (event) => {
      if (event.target.checked) chosen.add(one.id);
      else chosen.delete(one.id);
      onChoose([...chosen].slice(-MOST_COMPARED));
    } });
    return table([
      { title: "Compare", cell: box }, { title: "Plan", cell: titleOf }, { title: "Decision", cell: (one) => one.decision },
      { title: "Cohort", cell: (one) => one.cohort ?? "published rule" }, { title: "Guideline", cell: (one) => `${one.guideline_id.slice(0, 16)} v${one.guideline_version}` },
      { title: "Saved", cell: (one) => time(one.created_at) }, { title: "", cell: (one) => one.newer && h("span", { class: "tag warn" }, "newer answer") },
    ], details, { caption: "Tick up to four to compare them side by side." });
  });
  await drawCompared(compared, state, assumptions);
}

/** The chosen plans as columns. */
export async function drawCompared(element, state, assumptions) {
  const ids = comparedIn(state);
  if (ids.length < 2) return void fill(element, ids.length ? h("p", { class: "soft small" }, "Tick another plan to compare it with.") : null);
  await show(element, "the comparison", () => Promise.all(ids.map((id) => get(`recommendations/${id}`))), (plans) => compare(plans, assumptions()));
}

const titleOf = ({ answer }) => `${count(answer.target_model.params)} on ${count(answer.flops.scratch / answer.target_model.flops_per_token)} tokens`;

function compare(plans, assumptions) {
  const own = plans.map(({ answer }) => {
    const rows = rowsOf(answer, assumptions);
    return { rows, chosen: rows.find((row) => row.arm === chosenArm(answer)) ?? null };
  });
  const lines = [
    ["Decision", (plan) => plan.answer.decision],
    ["Growth", ({ answer }) => (answer.decision === "grow" ? `${factor(answer.growth_factor)} after ${tokens(answer.growth_timing_tokens)}` : "\u2013")],
    ["Chance that growing helps", ({ answer }) => (answer.expected.chance_growth_helps === null ? "not given" : chance(answer.expected.chance_growth_helps))],
    ["Grown \u2212 scratch", ({ answer }) => (answer.expected.delta_nats === null ? "not given" : `${delta(answer.expected.delta_nats)} (80%: ${interval(answer.expected.delta_interval)})`)],
    ["Speedup", ({ answer }) => (answer.expected.speedup === null ? "not given" : `${percent(answer.expected.speedup)} (${interval(answer.expected.speedup_interval, percent)})`)],
    ["GPU-hours of the recommended arm", (plan, i) => (own[i].chosen ? count(own[i].chosen.hours) : "\u2013")],
    ["Money", (plan, i) => (own[i].chosen ? money(own[i].chosen.money, assumptions.currency) : "\u2013")],
    ["Days", (plan, i) => (own[i].chosen ? figure(own[i].chosen.days) : "\u2013")],
    ["Final loss P10 to P90", (plan, i) => (own[i].chosen?.arm.loss_nats ? `${own[i].chosen.arm.loss_nats.p10.toFixed(3)} to ${own[i].chosen.arm.loss_nats.p90.toFixed(3)} nats` : "not given")],
    ["Worst-case regret", (plan, i) => (own[i].chosen?.arm.worst_regret ? `${own[i].chosen.arm.worst_regret.nats.toFixed(3)} nats` : "not given")],
    ["Support", ({ answer }) => answer.support.grade],
    ["Guideline", (plan) => `${plan.guideline_id}, version ${plan.guideline_version}`],
    ["Today's version says", ({ newer }) => (newer ? `${newer.decision}${newer.growth_timing_tokens ? ` after ${tokens(newer.growth_timing_tokens)}` : ""} (version ${newer.version})` : "the same version answers")],
  ];
  return h("div", { class: "table-wrap compare", tabindex: 0, role: "region", "aria-label": "Comparison of saved plans" }, h("table", {},
    h("caption", {}, "Side by side, under the price, GPUs, pilot and re-tuning of this page."),
    h("thead", {}, h("tr", {}, h("td", {}), plans.map((plan) => h("th", { scope: "col" }, titleOf(plan), h("div", { class: "why" }, time(plan.created_at)))))),
    h("tbody", {}, lines.map(([title, cell]) => h("tr", {}, h("th", { scope: "row" }, title), plans.map((plan, i) => h("td", {}, cell(plan, i))))))));
}
