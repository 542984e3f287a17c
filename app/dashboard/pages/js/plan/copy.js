// "Copy plan": the same question for the command line, Python and curl, and the command that hands the plan to another trainer.

import { address } from "../api.js";
import { fill, h } from "../dom.js";
import { announce } from "../shell.js";

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

/** `[{title, text}]` of a question, as POST /recommend takes it. */
export function textsOf(question) {
  const root = address("").href.replace(/\/$/, "");
  const config = question.target_config ?? configOf(question.target_shape);
  const options = cliOptions(question);
  const python = Object.entries(question).map(([name, value]) => `    ${name}=${pythonOf(value)},\n`).join("");
  return [
    { title: "Command line", text: `${config ? `cat > config.json <<'EOF'\n${JSON.stringify(config, null, 1)}\nEOF\n` : ""}GROWTHLAW_URL=${root} growthlaw recommend ${options.join(" ")}` },
    { title: "Python", text: `from app.client import Growthlaw\n\nanswer = Growthlaw(${JSON.stringify(root)}).recommend(\n${python})\nprint(answer.decision, answer.growth_factor, answer.growth_timing_tokens)` },
    { title: "curl", text: `curl ${root}/recommend -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(question))}` },
    { title: "Export for torchtitan, Megatron-LM or transformers",
      text: `curl -s ${root}/recommend -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(question))} > plan.json\ngrowthlaw plan export --for torchtitan --recommendation plan.json --target-config config.json --out plan/` },
  ];
}

/** A shape as the transformers config.json that says the same; null without one. */
function configOf(shape) {
  return shape ? {
    model_type: "llama", num_hidden_layers: shape.num_layers, hidden_size: shape.hidden_size, num_attention_heads: shape.num_heads,
    num_key_value_heads: shape.num_kv_heads ?? shape.num_heads, intermediate_size: shape.intermediate_size,
    vocab_size: shape.vocab_size, max_position_embeddings: shape.context_length,
  } : null;
}

/** Options of `growthlaw recommend`. */
function cliOptions({ target_config: config, target_shape: shape, existing_base: base, ...plain }) {
  const options = Object.entries(plain).map(([name, value]) => `--${name.replaceAll("_", "-")} ${typeof value === "string" ? quoted(value) : value}`);
  if (config ?? shape) options.unshift("--config config.json");
  if (base) options.push(`--base-params ${base.params}`, `--base-tokens ${base.tokens}`);
  return options;
}

function pythonOf(value) {
  if (value === null) return "None";
  if (value === true || value === false) return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonOf).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${pythonOf(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}

export function openCopy(question) {
  const dialog = h("dialog", { class: "copy-dialog", "aria-labelledby": "copy-title" });
  fill(dialog, h("div", { class: "row between" }, h("h2", { id: "copy-title" }, "Copy plan"), h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    h("div", { class: "stack" }, textsOf({ ...question }).map(({ title, text }) => h("section", {},
      h("div", { class: "row between" }, h("h3", {}, title), h("button", { type: "button", "aria-label": `Copy ${title}`, onclick: (event) => copy(text, event.currentTarget) }, "Copy")),
      h("pre", { tabindex: 0, "aria-label": title }, text))),
    h("section", {}, h("div", { class: "row between" }, h("h3", {}, "Link"), h("button", { type: "button", "aria-label": "Copy Link", onclick: (event) => copy(location.href, event.currentTarget) }, "Copy")), h("pre", { tabindex: 0, "aria-label": "Link" }, location.href))));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure connection a browser has no clipboard: then the text is selected, ready for the reader's own copy.
    const pre = button.closest("section").querySelector("pre");
    getSelection().selectAllChildren(pre);
    announce("Selected; press Ctrl+C to copy");
    return;
  }
  button.textContent = "Copied";
  announce("Copied");
}
