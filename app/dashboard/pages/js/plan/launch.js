// "Launch": the plan as a growth job and its controls. What the answer knows is filled in; what it does not is asked for.

import { ApiError, listAll, post, postOnce } from "../api.js";
import { fill, h } from "../dom.js";
import { parse } from "../format.js";
import { announce } from "../shell.js";
import { shapeOfConfig } from "./state.js";

const SIZES = {
  num_layers: "Layers", hidden_size: "Hidden size", num_heads: "Heads", num_kv_heads: "Key-value heads", intermediate_size: "Intermediate size",
  context_length: "Context length",
};

/** What the dialog starts from: the answer's numbers, whole where the trainer takes whole ones; "" where it gives none. */
export function designOf(answer, question) {
  const shape = question.target_shape ?? shapeOfConfig(question.target_config, question.context_length) ?? {};
  const recipe = (name) => answer.recipe[name]?.value ?? null;
  const context = shape.context_length;
  const batch = recipe("batch_tokens");
  const whole = (value) => (value === null || value === undefined ? "" : String(Math.round(value)));
  return {
    name: "plan", cohort: question.cohort ?? "", ...Object.fromEntries(Object.keys(SIZES).map((name) => [name, shape[name] ?? ""])),
    num_layers: shape.num_layers ?? question.num_target_layers ?? "",
    growth_factor: answer.growth_factor ?? "", growth_timing_tokens: whole(answer.growth_timing_tokens),
    token_budget: whole(answer.flops.scratch / answer.target_model.flops_per_token),
    peak_lr: recipe("target_peak_lr") ?? "", batch_sequences: batch && context ? Math.max(1, Math.round(batch / context)) : "8",
    warmup_tokens: whole(recipe("rewarmup_tokens") ?? 0),
  };
}

/** Open the dialog. */
export async function openLaunch(answer, question) {
  const design = designOf(answer, question);
  const inputs = {};
  const field = (name, label, { hint = null, ...attributes } = {}) => {
    const input = h("input", { id: `l-${name}`, value: String(design[name]), "aria-describedby": `lw-${name}`, autocomplete: "off", ...attributes });
    inputs[name] = input;
    return h("div", { class: "field" }, h("label", { for: `l-${name}` }, label), input, hint && h("p", { class: "hint" }, hint), h("p", { class: "wrong", id: `lw-${name}` }));
  };
  const corpus = h("select", { id: "l-corpus", "aria-describedby": "lw-corpus" });
  inputs.corpus = corpus;
  const corpora = h("div", { class: "field" }, h("label", { for: "l-corpus" }, "Corpus"), corpus, h("p", { class: "wrong", id: "lw-corpus" }));
  const controls = ["scratch", "base_only"].map((role) => h("label", { class: "way", for: `l-${role}` },
    h("input", { type: "checkbox", id: `l-${role}`, value: role, checked: role === "scratch" }), role === "scratch" ? " From scratch" : " Base alone"));
  const other = h("div", { role: "alert" });
  const start = h("button", { type: "submit", class: "first" }, "Start jobs");
  const form = h("form", { novalidate: true, class: "stack" },
    answer.growth_timing_tokens === null && h("p", { class: "note warn" }, "This answer recommends no growth here, so growth factor and timing are yours to give."),
    h("div", { class: "two" }, field("name", "Name"), field("cohort", "Cohort", { hint: "Losses compare within one" }), corpora,
      h("fieldset", { class: "field" }, h("legend", {}, "Controls at equal FLOPs"), controls)),
    h("fieldset", {}, h("legend", {}, "Target"), h("div", { class: "two" }, Object.entries(SIZES).map(([name, label]) => field(name, label, { inputmode: "numeric" }))),
      h("p", { class: "hint soft small" }, "The vocabulary is the corpus's.")),
    h("fieldset", {}, h("legend", {}, "Growth and training"), h("div", { class: "two" },
      field("growth_factor", "Growth factor g"), field("growth_timing_tokens", "Growth timing d (tokens)"), field("token_budget", "Token budget"),
      field("peak_lr", "Peak learning rate"), field("batch_sequences", "Sequences a batch"), field("warmup_tokens", "Warm-up (tokens)"))),
    other, h("div", { class: "row" }, start, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
  const dialog = h("dialog", { class: "launch-dialog", "aria-labelledby": "launch-title" }, h("h2", { id: "launch-title" }, "Launch this plan"), form);
  dialog.addEventListener("close", () => dialog.remove());

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    tell(inputs, other, {});
    start.disabled = true;
    try {
      const growth = await postOnce("grow", bodyOf(inputs, controls, answer.id));
      fill(dialog, started(growth, dialog));
      announce("Started");
    } catch (error) {
      tell(inputs, other, told(error));
    } finally {
      start.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  await offerCorpora(corpora, corpus, other);
}

async function offerCorpora(place, select, other) {
  try {
    const found = await listAll("corpora");
    fill(select, found.map((one) => h("option", { value: one.name }, `${one.name} (vocabulary ${one.vocab_size})`)));
    if (found.length) return;
    const prepare = h("button", { type: "button", onclick: async () => {
      prepare.disabled = true;
      try {
        const job = await post("corpora", { name: "demo" });
        fill(place.querySelector(".wrong"), "It is being prepared: ", h("a", { href: `job.html?id=${job.id}` }, "watch it"), ", then open this again.");
      } catch (error) {
        fill(place.querySelector(".wrong"), error.message);
      }
    } }, "Prepare the bundled corpus");
    fill(place.querySelector(".wrong"), "No corpus is prepared yet. ", prepare);
  } catch (error) {
    fill(other, h("p", { class: "note bad" }, error.message));
  }
}

function bodyOf(inputs, controls, recommendationId) {
  const value = (name) => inputs[name].value.trim();
  // What is no number goes as it was typed: the service says what is wrong with it.
  const number = (name) => (value(name) === "" ? null : Number.isNaN(parse(value(name))) ? value(name) : parse(value(name)));
  // What is empty is left out: the service then says that it is missing, or takes its default.
  const numbers = (names) => Object.fromEntries(names.map((name) => [name, number(name)]).filter(([, one]) => one !== null));
  return {
    name: value("name"), ...(value("cohort") ? { cohort: value("cohort") } : {}), corpus: value("corpus"), target_model: numbers(Object.keys(SIZES)),
    ...numbers(["growth_factor", "growth_timing_tokens", "token_budget"]), training: numbers(["peak_lr", "batch_sequences", "warmup_tokens"]),
    controls: controls.map((label) => label.querySelector("input")).filter((box) => box.checked).map((box) => box.value),
    recommendation_id: recommendationId,
  };
}

/** Errors by field; what belongs to none of them under "". */
function told(error) {
  if (!(error instanceof ApiError)) throw error;
  const found = {};
  for (const { pointer, detail } of error.problem.errors ?? []) found[pointer.split("/").pop()] = detail;
  return Object.keys(found).length ? found : { "": error.message };
}

function tell(inputs, other, errors) {
  const left = Object.entries(errors).filter(([name]) => !(name in inputs)).map(([, text]) => text);
  fill(other, left.map((text) => h("p", { class: "note bad" }, text)));
  let first = null;
  for (const [name, input] of Object.entries(inputs)) {
    document.getElementById(`lw-${name}`).textContent = errors[name] ?? "";
    if (errors[name]) {
      input.setAttribute("aria-invalid", "true");
      first ??= input;
    } else input.removeAttribute("aria-invalid");
  }
  first?.focus();
}

function started(growth, dialog) {
  return h("div", { class: "stack" }, h("h2", { id: "launch-title" }, growth.arms.length === 1 ? "One job is queued" : `${growth.arms.length} jobs are queued`),
    h("ul", {}, growth.arms.map(({ job }) => h("li", {}, h("a", { href: `job.html?id=${job.id}` }, job.name), ` (${job.role.replace("_", " ")})`))),
    growth.warnings.map((text) => h("p", { class: "note warn" }, text)),
    h("div", { class: "row" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close")));
}
