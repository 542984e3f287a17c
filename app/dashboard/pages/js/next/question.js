// The question of the page: its fields, what stands in the URL, and the body of POST /plan that they make.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { count, parse, time } from "../format.js";

const DEFAULTS = { unit: "flops", for: "cohort", steps: "5" };
const SECONDS_AN_HOUR = 3600;
// Of a smaller budget FLOPs are easier to read.
const FEWEST_HOURS = 0.01;
/** Where the service's pointers lead: the field that shows what was wrong. */
export const FIELD_OF = {
  "/cohort": "cohort", "/flops_budget": "budget", "/max_steps": "steps", "/decision": "target", "/target_params": "target",
  "/decision/target_params": "target", "/decision/token_budget": "tokens", "/token_budget": "tokens",
  "/decision/peak_flops_per_second": "peak", "/decision/utilisation": "util", "/utilisation": "util", "/peak_flops_per_second": "peak",
};

/** GPU-hours of `flops` on the GPU of a state; null where it names none, or all that may be spent is seconds of it. */
export function gpuHoursOf(state, flops) {
  const price = perGpuHour(state);
  if (!price) return null;
  const budget = parse(state.budget) / (state.unit === "gpuh" ? 1 : price);
  return budget >= FEWEST_HOURS ? flops / price : null;
}

function perGpuHour(state) {
  const flops = parse(state.peak ?? "") * (Number(state.util) / 100) * SECONDS_AN_HOUR;
  return flops > 0 ? flops : null;
}

/** The wrong fields of a state, by name; empty where it can be asked. */
export function wrongFields(state) {
  const wrong = {};
  const positive = (name, what) => { if (!(parse(state[name] ?? "") > 0)) wrong[name] = `Give ${what}, such as 5e13, 402k or 7B.`; };
  if (!state.cohort) wrong.cohort = "Choose a cohort.";
  positive("budget", "a number above 0");
  if (state.unit === "gpuh" || state.peak || state.util) {
    positive("peak", "what one GPU does at its peak, in FLOPs a second");
    if (!(Number(state.util) > 0 && Number(state.util) <= 100)) wrong.util = "Give a share of the peak between 0 and 100%.";
  }
  if (!(Number.isInteger(Number(state.steps)) && state.steps >= 1 && state.steps <= 20)) wrong.steps = "Give a whole number from 1 to 20.";
  if (state.for === "target") { positive("target", "the target's non-embedding parameters"); positive("tokens", "its token budget"); }
  if (state.for === "kept" && !state.rec) wrong.rec = "Choose a kept answer.";
  return wrong;
}

/** The body of POST /plan for a state that has no wrong field. */
export async function bodyOf(state, signal) {
  const budget = parse(state.budget) * (state.unit === "gpuh" ? perGpuHour(state) : 1);
  const body = { cohort: state.cohort, flops_budget: Number(budget.toPrecision(6)), max_steps: Number(state.steps) };
  const hardware = perGpuHour(state) ? { peak_flops_per_second: parse(state.peak), utilisation: Number(state.util) / 100 } : {};
  if (state.for === "target") body.decision = { target_params: parse(state.target), token_budget: parse(state.tokens), ...hardware };
  if (state.for === "kept") {
    const { question } = await get(`recommendations/${encodeURIComponent(state.rec)}`, {}, { signal });
    // The plan names cohort and guideline, and keeps nothing.
    const { guideline, keep, cohort, ...asked } = question;
    body.decision = Object.fromEntries(Object.entries({ ...hardware, ...asked }).filter(([, value]) => value !== null));
  }
  return body;
}

/** The state of the URL with what goes without saying. */
export const withDefaults = (state) => ({ ...DEFAULTS, ...state });

/** A state without what goes without saying, for the URL. */
export function forUrl(state) {
  const kept = { ...state };
  for (const [name, value] of Object.entries(DEFAULTS)) if (kept[name] === value) delete kept[name];
  if (state.for !== "target") { delete kept.target; delete kept.tokens; }
  if (state.for !== "kept") delete kept.rec;
  return kept;
}

/**
 * The form. `onChange(state)` is told whenever a field was changed for good, `onAsk(state)` when the reader asks.
 * Returns `{element, tell(wrong)}`: `tell` shows what is wrong, by field.
 */
export function questionForm(state, cohorts, kept, { onChange, onAsk }) {
  const now = { ...state };
  const notes = new Map();
  const inputs = new Map();

  function field(name, label, input, hint = null) {
    const note = h("p", { class: "wrong", id: `${name}-wrong`, hidden: true });
    input.id = name;
    input.setAttribute("aria-describedby", `${name}-wrong`);
    input.addEventListener("change", () => { now[name] = input.value.trim(); shown(); onChange({ ...now }); });
    notes.set(name, note);
    inputs.set(name, input);
    return h("div", { class: "field" }, h("label", { for: name }, label), input, hint && h("p", { class: "hint" }, hint), note);
  }
  const text = (name, attributes = {}) => h("input", { type: "text", autocomplete: "off", spellcheck: "false", inputmode: "decimal", value: now[name] ?? "", ...attributes });
  const select = (name, options) => h("select", {}, options.map(([value, title]) => h("option", { value, selected: value === (now[name] ?? "") }, title)));

  const cohortOptions = cohorts.map((one) => [one.name, `${one.name} (${one.num_runs} runs${one.guideline_id ? "" : ", no guideline yet"})`]);
  const keptOptions = kept.map((one) => [one.id, `${one.decision}, ${time(one.created_at)}${one.cohort ? `, ${one.cohort}` : ""}`]);
  if (now.rec && !kept.some((one) => one.id === now.rec)) keptOptions.unshift([now.rec, now.rec]);
  const ofTarget = h("div", { class: "pair" },
    field("target", "Target size", text("target", { placeholder: "402k" }), "parameters without embeddings"),
    field("tokens", "Token budget", text("tokens", { placeholder: "8M" }), "of training from scratch"));
  const ofKept = field("rec", "Kept answer", select("rec", [["", keptOptions.length ? "choose ..." : "none is kept yet"], ...keptOptions]));
  function shown() {
    ofTarget.hidden = now.for !== "target";
    ofKept.hidden = now.for !== "kept";
  }
  const element = h("form", { class: "card", novalidate: true, "aria-label": "What is asked", onsubmit: (event) => {
    event.preventDefault();
    for (const [name, input] of inputs) now[name] = input.value.trim();
    onAsk({ ...now });
  } },
    field("cohort", "Cohort", select("cohort", [["", "choose ..."], ...cohortOptions]), "whose guideline is asked, and whose sizes may be trained"),
    h("div", { class: "pair" },
      field("budget", "All runs may cost", text("budget", { placeholder: "5e13" })),
      field("unit", "Unit", select("unit", [["flops", "FLOPs"], ["gpuh", "GPU-hours"]]))),
    field("for", "The runs are for", select("for", [["cohort", "every size of the cohort"], ["target", "one target and budget"], ["kept", "a kept answer"]]),
      "at its longest budget and four times beyond; for one decision the runs must save more than they cost"),
    ofTarget, ofKept,
    h("fieldset", {}, h("legend", {}, "GPU"),
      h("div", { class: "pair" },
        field("peak", "Peak FLOP/s", text("peak", { placeholder: "989e12" })),
        field("util", "Used, %", text("util", { placeholder: "40" }))),
      h("p", { class: "hint small soft" }, "one GPU's peak, and the share of it that training reaches; may be left out with FLOPs")),
    field("steps", "Steps at most", text("steps", { inputmode: "numeric" })),
    h("button", { class: "first", type: "submit" }, "Plan"));
  shown();

  function tell(wrong) {
    for (const [name, note] of notes) {
      note.hidden = !wrong[name];
      fill(note, wrong[name] ?? "");
      inputs.get(name).toggleAttribute("aria-invalid", false);
      if (wrong[name]) inputs.get(name).setAttribute("aria-invalid", "true");
    }
  }
  return { element, tell };
}

/** What a kept answer or target is called in a sentence. */
export function asked(state) {
  if (state.for === "target") return `${count(parse(state.target))} parameters on ${count(parse(state.tokens))} tokens`;
  return state.for === "kept" ? "a kept answer" : `every size of cohort ${state.cohort}`;
}
