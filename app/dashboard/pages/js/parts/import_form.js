// What an import says beside its files: the fields, by the names that POST /runs/import has for them, and how they are read.

import { h } from "../dom.js";
import { parse } from "../format.js";
import { field, mark, select } from "./fields.js";

const FORMATS = ["transformers", "megatron", "tensorboard", "lightning", "nanochat", "csv", "jsonl", "parquet", "wandb"];

const text = (name, attributes = {}) => h("input", { id: name, name, autocomplete: "off", spellcheck: "false", ...attributes });

/** The form's parts; `cohorts` are names, `mappings` as GET /mappings gives them, `formats` those the service reads. */
export function importFields({ cohorts, mappings, formats = FORMATS }) {
  const choices = [["", "told from the files"], ...formats.map((one) => [one, one])];
  const inputs = {
    mapping: select("mapping", [["", mappings.length ? "none" : "none saved yet"], ...mappings.map((one) => [one.name, one.name])], ""),
    cohort: text("cohort", { required: true, list: "cohorts", placeholder: "whose losses compare" }),
    name: text("name", { required: true, maxlength: 64 }),
    target_params: text("target_params", { inputmode: "decimal", placeholder: "such as 7B" }),
    config: h("textarea", { id: "config", rows: 3, spellcheck: "false", placeholder: "{ \"num_hidden_layers\": 32, ... }" }),
    base_layers: text("base_layers", { inputmode: "numeric" }),
    base_params: text("base_params", { inputmode: "decimal" }),
    base_config: h("textarea", { id: "base_config", rows: 3, spellcheck: "false" }),
    growth_timing_tokens: text("growth_timing_tokens", { inputmode: "decimal", placeholder: "the end of the base's log" }),
    grown_counts: select("grown_counts", [["", "told from the numbers"], ["phase", "from 0 at its growth"], ["run", "on from the base's"]], ""),
    tokens: text("tokens", { placeholder: "tokens, or step * 1024 * 4096" }),
    base_tokens: text("base_tokens", { placeholder: "as above" }),
    step: text("step", { placeholder: "step" }),
    format: select("format", choices, ""),
    corpus: text("corpus"), tokenizer: text("tokenizer"), context_length: text("context_length", { inputmode: "numeric" }),
    decision_dataset: text("decision_dataset", { placeholder: "the only one of the log" }),
    columns: h("textarea", { id: "columns", rows: 3, spellcheck: "false", placeholder: "eval/web = validation_loss on web\nbpb = validation_loss on web in bits per byte" }),
    bytes_per_token: text("bytes_per_token", { placeholder: "web = 4.2" }),
    status: select("status", [["", "told from the log"], ...["finished", "diverged", "stopped", "running"].map((one) => [one, one])], ""),
    is_final: select("is_final", [["true", "final"], ["false", "mid-schedule"]], "true"),
    lr_selection: select("lr_selection", [["", "not said"], ["grid tuned", "grid tuned"], ["shared", "shared"], ["untuned", "untuned"]], ""),
    replace: select("replace", [["false", "is refused"], ["true", "takes its place, under the same id"]], "false"),
    restore: select("restore", [["false", "stays away"], ["true", "comes back"]], "false"),
  };
  const group = (title, open, ...fields) => h("details", { open }, h("summary", {}, title), h("div", { class: "form" }, fields));
  const growthOnly = [
    field("Base layers", inputs.base_layers, { hint: "a base that is the target with fewer layers" }), field("Base size", inputs.base_params, { hint: "or its non-embedding parameters" }),
    field("Growth timing d", inputs.growth_timing_tokens, { hint: "tokens of the base at which it was grown" }), field("The grown log counts tokens", inputs.grown_counts),
    field("Tokens of the base's log", inputs.base_tokens), field("Base's config.json", inputs.base_config, { className: "full" }),
  ];
  const growth = group("The base and its growth", true, growthOnly);
  const element = h("div", { class: "stack" },
    h("datalist", { id: "cohorts" }, cohorts.map((name) => h("option", { value: name }))),
    h("div", { class: "form" },
      field("Saved mapping", inputs.mapping, { hint: "options that a project's imports share" }), field("Cohort", inputs.cohort, { hint: "one corpus, tokenizer, architecture family and recipe" }),
      field("Run's name", inputs.name), field("Target size N", inputs.target_params, { hint: "non-embedding parameters; or give its config.json" })),
    growth,
    group("Model", false, field("Target's config.json", inputs.config, { className: "full", hint: "of transformers: FLOPs then come from the shape, not from 6 N D" }), field("Context length", inputs.context_length)),
    group("How the log is read", false, field("Tokens seen", inputs.tokens, { hint: "a column, or arithmetic of columns and step" }), field("Column of steps", inputs.step), field("Format", inputs.format),
      field("What columns mean", inputs.columns, { className: "full", hint: "one a line: column = metric on data set in unit" }), field("Bytes per token", inputs.bytes_per_token, { hint: "data set = bytes: makes nats of bits per byte" })),
    group("What the log does not say", false, field("Corpus", inputs.corpus), field("Tokenizer", inputs.tokenizer), field("Judged by data set", inputs.decision_dataset, { hint: "the cohort's own where left out" }),
      field("Status", inputs.status), field("The last loss is", inputs.is_final), field("Learning rate was", inputs.lr_selection),
      field("A run of this name with another log", inputs.replace), field("A run that was removed", inputs.restore)));
  return { element, inputs, growth };
}

/** Fill the fields from a saved mapping's options; what it does not hold stays. */
export function applyMapping(inputs, options) {
  const written = {
    columns: (list) => list.map((one) => `${one.column} = ${one.metric}${one.dataset ? ` on ${one.dataset}` : ""}${one.unit ? ` in ${one.unit}` : ""}`).join("\n"),
    bytes_per_token: (map) => Object.entries(map).map(([name, value]) => `${name} = ${value}`).join(", "),
    config: (value) => JSON.stringify(value, null, 1), base_config: (value) => JSON.stringify(value, null, 1),
  };
  for (const [name, value] of Object.entries(options)) {
    if (value !== null && inputs[name]) inputs[name].value = written[name] ? written[name](value) : String(value);
  }
  if (options.stated?.lr_selection) inputs.lr_selection.value = options.stated.lr_selection;
}

/**
 * The options as POST /runs/import takes them, over those of a saved mapping (which may hold more than there are fields for).
 * Null where a field cannot be read, which it then says.
 */
export function readOptions(inputs, { saved = {}, isGrowth, needsName = true }) {
  const options = { ...saved };
  delete options.wandb;
  let sound = true;
  const wrong = (name, told) => { mark(inputs[name], told); sound = false; };
  for (const input of Object.values(inputs)) mark(input, null);
  const set = (name, value) => { if (value !== "" && value !== null) options[name] = value; else delete options[name]; };
  const GROWTH = ["base_layers", "base_params", "growth_timing_tokens", "grown_counts", "base_tokens", "base_config"];
  for (const name of ["cohort", "name", "format", "step", "tokens", "base_tokens", "corpus", "tokenizer", "decision_dataset", "grown_counts", "status"]) set(name, inputs[name].value.trim());
  for (const name of ["target_params", "base_params", "base_layers", "context_length", "growth_timing_tokens"]) {
    const given = inputs[name].value.trim();
    const value = given ? parse(given) : null;
    if (given && !Number.isFinite(value)) wrong(name, "a number such as 0.5, 7B or 1.2e12");
    else set(name, value);
  }
  for (const name of ["config", "base_config"]) {
    try {
      set(name, inputs[name].value.trim() ? JSON.parse(inputs[name].value) : null);
    } catch {
      wrong(name, "this is no JSON: paste the whole config.json");
    }
  }
  const columns = inputs.columns.value.split("\n").filter((line) => line.trim()).map((line) => /^(.+?)\s*=\s*(\S+)(?:\s+on\s+(\S+))?(?:\s+in\s+(.+))?$/.exec(line.trim()));
  if (columns.includes(null)) wrong("columns", "each line: column = metric on data set in unit");
  else set("columns", columns.length ? columns.map(([, column, metric, dataset, unit]) => ({ column, metric, ...(dataset ? { dataset } : {}), ...(unit ? { unit } : {}) })) : null);
  const bytes = inputs.bytes_per_token.value.split(",").filter((part) => part.trim()).map((part) => /^\s*(\S+)\s*=\s*([0-9.]+)\s*$/.exec(part));
  if (bytes.includes(null)) wrong("bytes_per_token", "data set = bytes, such as web = 4.2");
  else set("bytes_per_token", bytes.length ? Object.fromEntries(bytes.map(([, name, value]) => [name, Number(value)])) : null);
  options.is_final = inputs.is_final.value === "true";
  options.replace = inputs.replace.value === "true";
  options.restore = inputs.restore.value === "true";
  if (inputs.lr_selection.value) options.stated = { ...options.stated, lr_selection: inputs.lr_selection.value };
  if (!isGrowth) for (const name of GROWTH) delete options[name];
  if (!options.cohort) wrong("cohort", "name the cohort that the run belongs to");
  if (needsName && !options.name) wrong("name", "name the run");
  return sound ? options : null;
}

// What the importer calls otherwise.
const ALIASES = { map: "columns" };

/** Put what the service said of fields at them; returns what belongs to no field here. */
export function markErrors(inputs, errors) {
  const left = [];
  for (const error of errors) {
    const name = error.pointer.replace(/^\/options/, "").replace(/^\/runs\/\d+/, "").split("/")[1];
    const input = inputs[ALIASES[name] ?? name];
    if (!input) left.push(error);
    else {
      mark(input, error.detail);
      const folded = input.closest("details");
      if (folded) folded.open = true;
    }
  }
  return left;
}
