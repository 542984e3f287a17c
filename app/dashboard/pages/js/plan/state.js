// The question as the page's URL has it, and as the API is asked it. Every field of the form has one name in the URL.

import { parse } from "../format.js";

/** What stands where the URL says nothing: inside what the published rule was fitted on. */
export const DEFAULTS = {
  by: "size", params: "3B", layers: "", budget: "60B", unit: "tokens", peak: "989", utilisation: "40", gpus: "256", currency: "$",
};
export const SHAPE = ["layers", "hidden", "heads", "kv", "ffn", "vocab", "context"];
export const NAMES = [
  "by", "params", "config", ...SHAPE, "budget", "unit", "peak", "utilisation", "price", "currency", "gpus", "start", "cohort",
  "base_params", "base_tokens", "pilot", "retune", "landscape", "compare",
];
// What only prices the answer or shows it in another way; the API is not asked again for these.
const NOT_ASKED = ["price", "currency", "gpus", "start", "pilot", "retune", "landscape", "compare"];
const UNITS = { tokens: "token_budget", flops: "compute_flops", gpu_hours: "gpu_hours" };
const SHAPE_FIELDS = {
  layers: "num_layers", hidden: "hidden_size", heads: "num_heads", kv: "num_kv_heads", ffn: "intermediate_size", vocab: "vocab_size",
  context: "context_length",
};

// How a link says that a field with a default was emptied.
const EMPTIED = "none";

/** The state of a query: known names only, defaults where there are none. */
export function stateOf(query) {
  const known = Object.fromEntries(Object.entries(query).filter(([name]) => NAMES.includes(name))
    .map(([name, value]) => [name, value === EMPTIED && DEFAULTS[name] ? "" : value]));
  return { ...DEFAULTS, ...known };
}

/** What differs from the defaults: the shortest link to the same plan. */
export function queryOf(state) {
  const differing = NAMES.filter((name) => (state[name] ?? "") !== (DEFAULTS[name] ?? ""));
  return Object.fromEntries(differing.map((name) => [name, state[name] || EMPTIED]).filter(([name, value]) => value !== EMPTIED || DEFAULTS[name]));
}

/** A field that the page itself cannot read; `field` is its name in the URL. */
export class FieldError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

function number(state, name, what, { whole = false, least = 0 } = {}) {
  const value = parse(state[name] ?? "");
  if (!(value > least)) throw new FieldError(name, `Give ${what} as a number, such as 7B, 2T or 1.5e21.`);
  if (whole && !Number.isInteger(value)) throw new FieldError(name, `Give ${what} as a whole number.`);
  return value;
}

const given = (state, name) => (state[name] ?? "") !== "";

/** The body of POST /recommend. Throws a FieldError where a field cannot be read. */
export function questionOf(state) {
  const question = {};
  if (state.by === "config") {
    if (!given(state, "config")) throw new FieldError("config", "Paste or drop the target's config.json.");
    try {
      question.target_config = JSON.parse(state.config);
    } catch {
      throw new FieldError("config", "This is no JSON. Paste the whole config.json.");
    }
    if (given(state, "context")) question.context_length = number(state, "context", "the context length", { whole: true });
  } else if (state.by === "shape") {
    question.target_shape = Object.fromEntries(SHAPE.filter((name) => given(state, name) || name !== "kv")
      .map((name) => [SHAPE_FIELDS[name], number(state, name, "this size", { whole: true })]));
  } else {
    question.target_params = number(state, "params", "the target's parameters");
    if (given(state, "layers")) question.num_target_layers = number(state, "layers", "the layers", { whole: true });
  }
  question[UNITS[state.unit] ?? "token_budget"] = number(state, "budget", "the budget");
  if (given(state, "peak") || given(state, "utilisation")) Object.assign(question, hardwareOf(state));
  if (given(state, "cohort")) question.cohort = state.cohort;
  if (given(state, "base_params") || given(state, "base_tokens")) {
    question.existing_base = { params: number(state, "base_params", "the base's parameters"), tokens: number(state, "base_tokens", "the base's tokens") };
  }
  return question;
}

/** Peak (given in TFLOP/s) and utilisation (in per cent) in the API's units. */
export function hardwareOf(state) {
  const percent = number(state, "utilisation", "the utilisation in per cent");
  if (percent > 100) throw new FieldError("utilisation", "Utilisation lies above 0 and at most at 100%.");
  return { peak_flops_per_second: number(state, "peak", "one GPU's peak in TFLOP/s") * 1e12, utilisation: percent / 100 };
}

/** What the planner alone knows: money, machines, dates, and the GPU-hours of pilot and re-tuning; null where not given. */
export function assumptionsOf(state) {
  const amount = (name) => {
    const value = parse(state[name] ?? "");
    return value >= 0 ? value : null;
  };
  const start = /^\d{4}-\d{2}-\d{2}$/.test(state.start ?? "") ? new Date(`${state.start}T00:00:00Z`) : null;
  return {
    price: amount("price"), currency: state.currency || "$", numGpus: amount("gpus") || null,
    start: start && !Number.isNaN(start.getTime()) ? start : null,
    pilotHours: amount("pilot") ?? 0, retuneHours: amount("retune") ?? 0,
  };
}

/** What of the planner's own figures cannot be read, by field: none of them may count as nothing unseen. */
export function assumptionErrors(state) {
  const amounts = ["price", "gpus", "pilot", "retune"].filter((name) => given(state, name) && !(parse(state[name]) >= 0));
  return Object.fromEntries(amounts.map((name) => [name, "This is no amount; it is left out until it is mended."]));
}

/** What tells two questions apart: plans with the same key have the same answer. */
export function keyOf(state) {
  return JSON.stringify(NAMES.filter((name) => !NOT_ASKED.includes(name)).map((name) => state[name] ?? ""));
}

// Where an error of the API belongs on the form.
const FIELD_OF = {
  target_params: "params", num_target_layers: "layers", target_config: "config", context_length: "context", token_budget: "budget",
  compute_flops: "budget", gpu_hours: "budget", peak_flops_per_second: "peak", utilisation: "utilisation", cohort: "cohort",
};

/** The form's field that a JSON pointer means; null where it is none of them. */
export function fieldAt(pointer) {
  const [, first, second] = pointer.split("/");
  if (first === "target_shape") return SHAPE.find((name) => SHAPE_FIELDS[name] === second) ?? "layers";
  if (first === "existing_base") return second === "tokens" ? "base_tokens" : "base_params";
  return FIELD_OF[first] ?? null;
}

/** The query of GET /surface for the same question; null where the surface cannot be asked by size or shape alone. */
export function surfaceQueryOf(state, answer) {
  const question = questionOf(state);
  const { target_shape: shape, target_config: config, existing_base: base, context_length: context, ...query } = question;
  const sizes = shape ?? shapeOfConfig(config, context);
  if (sizes) {
    const { num_layers: layers, ...others } = sizes;
    Object.assign(query, others, { num_target_layers: layers });
  }
  if (base) Object.assign(query, { existing_base_tokens: base.tokens, base_compute: "sunk" });
  query.guideline = answer.guideline.id;
  return query;
}

/** The sizes that a transformers config names itself; null without one. */
export function shapeOfConfig(config, context) {
  if (!config) return null;
  return {
    num_layers: config.num_hidden_layers, hidden_size: config.hidden_size, num_heads: config.num_attention_heads,
    num_kv_heads: config.num_key_value_heads ?? config.num_attention_heads, intermediate_size: config.intermediate_size,
    vocab_size: config.vocab_size, context_length: context ?? config.max_position_embeddings,
  };
}
