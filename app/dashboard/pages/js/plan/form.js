// The question's form: fields, and sliders that write into them. The page owns the state; the form tells what was typed.

import { fill, h } from "../dom.js";
import { count, parse } from "../format.js";
import { SHAPE } from "./state.js";

const SHAPE_TITLES = {
  layers: "Layers", hidden: "Hidden size", heads: "Heads", kv: "Key-value heads", ffn: "Intermediate size", vocab: "Vocabulary",
  context: "Context length",
};
// Sliders move in powers of ten; tokens from a small grid to beyond today's largest runs.
const SLIDERS = {
  params: [4.5, 12.5], tokens: [5, 14], flops: [11, 27], gpu_hours: [-2, 8],
};
const STEP = 0.02;
const LARGEST_CONFIG = 20_000;

/**
 * Build the form into `element`. `onChange(name, value)` is called for each change; `cohorts` are those of GET /cohorts.
 * Returns `{show(state), tellErrors({name: text})}`.
 */
export function buildForm(element, cohorts, onChange) {
  const inputs = {};
  const sliders = [];

  function field(name, label, { hint = null, type = "text", ...attributes } = {}) {
    const input = h("input", {
      id: `f-${name}`, name, type, "aria-describedby": `h-${name} w-${name}`, spellcheck: "false",
      oninput: () => onChange(name, input.value.trim()), ...attributes,
    });
    inputs[name] = input;
    return h("div", { class: "field" }, h("label", { for: `f-${name}` }, label), input,
      h("p", { class: "hint", id: `h-${name}` }, hint), h("p", { class: "wrong", id: `w-${name}` }));
  }

  function choice(name, label, options, hint = null) {
    const select = h("select", { id: `f-${name}`, name, "aria-describedby": `h-${name} w-${name}`, onchange: () => onChange(name, select.value) },
      options.map(([value, title]) => h("option", { value }, title)));
    inputs[name] = select;
    return h("div", { class: "field" }, h("label", { for: `f-${name}` }, label), select, h("p", { class: "hint", id: `h-${name}` }, hint), h("p", { class: "wrong", id: `w-${name}` }));
  }

  /** A slider over the powers of ten of the field `name`; `range()` gives the two ends. */
  function slider(name, label, range) {
    const input = h("input", { type: "range", step: STEP, "aria-label": label, oninput: () => {
      const value = Number((10 ** Number(input.value)).toPrecision(2));
      inputs[name].value = count(value, 2).replace("\u2212", "-");
      input.setAttribute("aria-valuetext", inputs[name].value);
      onChange(name, inputs[name].value);
    } });
    sliders.push(() => {
      const [low, high] = range();
      input.min = low;
      input.max = high;
      const value = parse(inputs[name].value);
      input.value = value > 0 ? Math.log10(value) : low;
      input.setAttribute("aria-valuetext", inputs[name].value);
    });
    return input;
  }

  const config = h("textarea", {
    id: "f-config", name: "config", rows: 5, spellcheck: "false", placeholder: "Paste config.json, or drop the file here",
    "aria-describedby": "h-config w-config", oninput: () => onChange("config", compact(config.value)),
  });
  inputs.config = config;
  const drop = h("div", { class: "field drop",
    ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    ondragleave: () => drop.classList.remove("over"),
    ondrop: async (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      const file = event.dataTransfer.files[0];
      if (file) take(await file.text());
    } },
  h("label", { for: "f-config" }, "transformers config.json"), config,
  h("label", { class: "button small", for: "f-file" }, "Choose a file"),
  h("input", { id: "f-file", type: "file", accept: ".json,application/json", class: "visually-hidden", onchange: async (event) => {
    const file = event.target.files[0];
    if (file) take(await file.text());
  } }),
  h("p", { class: "hint", id: "h-config" }, "Dense decoders with gated MLPs; the layers and widths are read from it."), h("p", { class: "wrong", id: "w-config" }));
  const take = (text) => { config.value = compact(text); onChange("config", config.value); };

  const ways = [["size", "Size"], ["config", "config.json"], ["shape", "Shape"]];
  const by = h("div", { class: "row ways", role: "radiogroup", "aria-label": "Say the target by" }, ways.map(([value, title]) => {
    const input = h("input", { type: "radio", name: "by", id: `by-${value}`, value, onchange: () => onChange("by", value) });
    inputs[`by-${value}`] = input;
    return h("label", { class: "way", for: `by-${value}` }, input, " ", title);
  }));
  const parts = {
    size: h("div", {}, field("params", "Non-embedding parameters", { hint: "7B, 402k, 1.3e9" }), slider("params", "Parameters of the target", () => SLIDERS.params),
      field("layers", "Layers (if known)", { hint: "Lets the answer name whole layers", inputmode: "numeric" })),
    config: drop,
    shape: h("div", { class: "two" }),
  };
  // Layers stand in both ways to say a target, so the shape has an input of its own for them.
  const shapeInputs = {};
  fill(parts.shape, SHAPE.map((name) => {
    const input = h("input", { id: `s-${name}`, name, inputmode: "numeric", oninput: () => onChange(name, input.value.trim()), "aria-describedby": `ws-${name}` });
    shapeInputs[name] = input;
    return h("div", { class: "field" }, h("label", { for: `s-${name}` }, SHAPE_TITLES[name]), input, h("p", { class: "wrong", id: `ws-${name}` }));
  }));

  const money = h("details", {}, h("summary", {}, "Hardware, price and dates"), h("div", { class: "two" },
    field("peak", "Peak of one GPU (TFLOP/s)", { inputmode: "decimal" }), field("utilisation", "Utilisation (%)", { inputmode: "decimal" }),
    field("gpus", "GPUs (K)", { inputmode: "numeric" }), field("start", "Start", { type: "date" }),
    field("price", "Price of a GPU-hour", { inputmode: "decimal" }), field("currency", "Currency", { maxlength: 4 })));
  const extra = h("details", {}, h("summary", {}, "Existing base, pilot, re-tuning"),
    h("p", { class: "hint soft small" }, "A base that is there already: its compute is spent (sunk), and it fixes the growth factor."),
    h("div", { class: "two" }, field("base_params", "Base parameters"), field("base_tokens", "Tokens it has seen"),
      field("pilot", "Pilot (GPU-hours)", { hint: "Your own figures:" }), field("retune", "Re-tuning (GPU-hours)", { hint: "inside the total" })));

  fill(element,
    h("fieldset", {}, h("legend", {}, "Target"), by, parts.size, parts.config, parts.shape),
    h("fieldset", {}, h("legend", {}, "Budget"),
      h("div", { class: "two" }, field("budget", "Amount"),
        choice("unit", "Unit", [["tokens", "tokens from scratch"], ["flops", "FLOPs"], ["gpu_hours", "GPU-hours"]])),
      slider("budget", "Budget", () => SLIDERS[inputs.unit.value] ?? SLIDERS.tokens)),
    h("fieldset", {}, h("legend", {}, "Whose runs"), choice("cohort", "Cohort",
      [["", "none: the published rule"], ...cohorts.map((one) => [one.name, `${one.name} (${one.num_runs} runs)`])],
      "Runs whose losses may be compared")),
    money, extra);
  element.addEventListener("submit", (event) => event.preventDefault());

  return {
    show(state) {
      const by = ["config", "shape"].includes(state.by) ? state.by : "size";
      for (const [name, input] of Object.entries(inputs)) {
        if (name.startsWith("by-")) input.checked = name === `by-${by}`;
        else if (document.activeElement !== input) input.value = state[name] ?? "";
      }
      for (const [name, input] of Object.entries(shapeInputs)) if (document.activeElement !== input) input.value = state[name] ?? "";
      if (state.cohort && !cohorts.some((one) => one.name === state.cohort)) inputs.cohort.value = "";
      for (const [name, part] of Object.entries(parts)) part.hidden = name !== by;
      if (state.base_params || state.base_tokens || state.pilot || state.retune) extra.open = true;
      if (state.price || state.start) money.open = true;
      for (const set of sliders) set();
    },
    tellErrors(errors) {
      for (const id of [...Object.keys(inputs).map((name) => `w-${name}`), ...SHAPE.map((name) => `ws-${name}`)]) {
        const place = document.getElementById(id);
        if (!place) continue;
        const name = id.replace(/^ws?-/, "");
        const text = errors[name] ?? "";
        place.textContent = text;
        const input = id.startsWith("ws-") ? shapeInputs[name] : inputs[name];
        if (text) input.setAttribute("aria-invalid", "true");
        else input.removeAttribute("aria-invalid");
        const folded = input.closest("details");
        if (text && folded) folded.open = true;
      }
    },
  };
}

/** JSON without its spaces, so that a link stays short; anything else as it was typed. */
function compact(text) {
  if (text.length > LARGEST_CONFIG) return text;
  try {
    return JSON.stringify(JSON.parse(text));
  } catch {
    return text.trim();
  }
}
