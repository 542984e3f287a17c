// The answer on the page: the director's sentences, the key figures, and "we cannot tell you" where nothing supports the plan.

import { fill, h } from "../dom.js";
import { count, delta, factor, flops, gpuHours, interval, percent, tokens } from "../format.js";
import { amount, directorSentences, headline, isUnsupported, oversizedSentence } from "./sentence.js";

// What changes the meaning of the answer itself stands open, above its figures.
const OPEN = /over-sized|no inner optimum|expected to tie/;
const GRADES = { interpolation: ["good", "inside what was run"], mild: ["info", "a little outside what was run"], far: ["warn", "far outside what was run"], unsupported: ["bad", "unsupported"] };

export function drawAnswer(element, answer, state, assumptions) {
  element.className = `card answer ${isUnsupported(answer) ? "cannot" : answer.decision === "grow" ? "grow" : "other"}`;
  fill(element, isUnsupported(answer) ? cannotTell(answer, assumptions) : told(answer, state, assumptions), warnings(answer));
}

function told(answer, state, assumptions) {
  const [tone, words] = GRADES[answer.support.grade];
  return [
    h("p", { class: "row" }, h("span", { class: `tag ${tone}` }, words), guidelineTag(answer)),
    h("h2", { class: "headline" }, headline(answer)),
    h("p", { class: "lead", id: "sentence" }, directorSentences(answer, assumptions).join(" ")),
    notTheirs(answer, state),
    answer.warnings.filter((text) => OPEN.test(text) && text !== oversizedSentence(answer)).map((text) => h("p", { class: "note warn small" }, text)),
    figures(answer),
  ];
}

function cannotTell(answer, assumptions) {
  const pilot = answer.pilot;
  const cost = amount(pilot && { flops: pilot.compute_flops, gpu_hours: pilot.gpu_hours }, assumptions);
  const prior = answer.growth_timing_tokens !== null
    ? `The published prior, untested here: grow ${factor(answer.growth_factor)} after ${tokens(answer.growth_timing_tokens)}${answer.growth_timing_range ? ` (${interval(answer.growth_timing_range, tokens)})` : ""}. No gain and no chance can be given.`
    : "The published prior names no growth that this budget could pay for.";
  return [
    h("p", { class: "row" }, h("span", { class: "tag bad" }, "unsupported"), guidelineTag(answer)),
    h("h2", { class: "headline" }, "We cannot tell you."),
    h("p", { class: "lead", id: "sentence" }, `${answer.support.reason} A number here would be a guess, so none is given.`),
    h("div", { class: "cannot-grid" },
      pilot && h("div", { class: "pilot", role: "group", "aria-label": "The cheapest pilot that would help" },
        h("h3", {}, "The cheapest pilot that would help"),
        h("div", { class: "figure" }, cost),
        h("div", {}, `${pilot.num_runs} runs at equal FLOPs of a ${count(pilot.target_params)} target on ${tokens(pilot.token_budget)}: from scratch, grown, and the base alone.`),
        h("div", { class: "soft small" }, `${percent(pilot.compute_flops / answer.flops.scratch)} of this budget. It brings the plan from unsupported to far, where odds can be given.`)),
      h("div", {}, h("h3", {}, "What is known"), h("p", {}, prior),
        h("p", { class: "soft small" }, "Distance from what was run: ", Object.entries(answer.support.distances).filter(([, value]) => value !== null && value > 1)
          .map(([axis, value]) => `${axis.replaceAll("_", " ")} ${factor(value)}`).join(", ") || "none", "."))),
  ];
}

function guidelineTag(answer) {
  const { id, name, version } = answer.guideline;
  const title = id.startsWith("published:") ? name : `${name}, version ${version}`;
  return id.startsWith("published:") ? h("span", { class: "tag" }, title) : h("a", { class: "tag info", href: `guideline.html?id=${id}` }, title);
}

/** A cohort was named, but a published rule answers. */
function notTheirs(answer, state) {
  return state.cohort && answer.guideline.id.startsWith("published:")
    ? h("p", { class: "note warn" }, `The runs of ${state.cohort} do not answer this question: the published rule does. The reason stands first below.`) : null;
}

function figures(answer) {
  const { expected } = answer;
  const entries = [
    ["Growth factor g", answer.growth_factor === null ? null : factor(answer.growth_factor), null],
    ["Growth timing d", answer.growth_timing_tokens === null ? null : tokens(answer.growth_timing_tokens), answer.growth_timing_range && `near-optimal ${interval(answer.growth_timing_range, count)}`],
    ["Tokens after growth D", answer.grown_tokens === null ? null : tokens(answer.grown_tokens), null],
    ["Grown \u2212 scratch", expected.delta_nats === null ? null : delta(expected.delta_nats), expected.delta_interval && `80%: ${interval(expected.delta_interval, (value) => delta(value).replace(" nats", ""))}`],
    ["Speedup", expected.speedup === null ? null : percent(expected.speedup), expected.speedup_interval && interval(expected.speedup_interval, percent)],
    ["Compute budget", flops(answer.flops.scratch), answer.arms[0].gpu_hours === null ? null : gpuHours(answer.arms[0].gpu_hours)],
  ];
  return h("dl", { class: "figures" }, entries.filter(([, value]) => value !== null)
    .map(([title, value, range]) => h("div", {}, h("dt", {}, title), h("dd", {}, value, range && h("span", { class: "range" }, range)))));
}

function warnings(answer) {
  const own = answer.warnings.filter((text) => text !== answer.pilot?.sentence && (isUnsupported(answer) || !OPEN.test(text)));
  if (!own.length) return null;
  return h("details", {}, h("summary", {}, `What to know before you trust this (${own.length})`), h("ul", {}, own.map((text) => h("li", {}, text))));
}
