// One run: what it is, its curve, what was corrected, and what it hangs together with.

import { get, patch, remove } from "../api.js";
import { byId, fill, h, table } from "../dom.js";
import { count, factor, figure, flops, loss, params, percent, time, tokens } from "../format.js";
import { confirmed } from "../parts/confirm.js";
import { field, select } from "../parts/fields.js";
import { runView } from "../parts/run_view.js";
import { announce, empty, show, startPage } from "../shell.js";
import { linkTo, readState, writeState } from "../url.js";

const STATUS = { finished: "good", diverged: "bad", stopped: "warn", running: "info" };
const RELATIVES = [["control_id", "Control"], ["trunk_id", "Trunk"], ["parent_run_id", "Branched from"]];

startPage();
const content = byId("content");
let state = readState();

if (!state.id) empty(content, "Which run?", h("p", {}, "Choose one in the ", h("a", { href: "runs.html" }, "table of runs"), "."));
else await show(content, "the run", load, draw);

async function load() {
  const run = await get(`runs/${encodeURIComponent(state.id)}`);
  const others = [...new Set(RELATIVES.map(([name]) => run[name]).filter((id) => id && id !== run.run_id))];
  const relatives = new Map(await Promise.all(others.map(async (id) => [id, await get(`runs/${encodeURIComponent(id)}`).catch(() => null)])));
  const jobs = run.source === "job" ? (await get("jobs", { run_id: run.run_id }).catch(() => ({ data: [] }))).data : [];
  return { run, relatives, jobs };
}

function draw({ run, relatives, jobs }) {
  document.title = `${run.name} \u00b7 Growthlaw`;
  document.querySelector("h1").textContent = run.name || run.run_id;
  const view = h("div", {});
  const drawCurve = runView(view, (changes) => { state = { ...state, ...changes }; writeState(state); void drawCurve(shown, state); });
  const control = relatives.get(run.control_id);
  const shown = control ? [run, control] : [run];
  fill(content,
    h("p", { class: "row" }, h("span", { class: `tag ${STATUS[run.status]}` }, run.status), h("span", { class: "tag" }, run.source),
      h("span", {}, "cohort ", h("a", { href: linkTo("runs.html", { cohort: run.cohort }) }, run.cohort)), h("code", { class: "small soft" }, run.run_id)),
    run.reason && h("p", { class: `note ${run.status === "finished" ? "" : "warn"}` }, run.reason),
    h("section", { class: "card headline", "aria-label": "In short" }, headline(run, control)),
    h("section", { class: "card" }, h("h2", {}, control ? "Its curve beside its control's" : "Its curve"), view),
    h("div", { class: "columns" },
      h("section", { class: "card" }, h("h2", {}, "What hangs together with it"), related(run, relatives, jobs)),
      h("section", { class: "card" }, h("h2", {}, "Corrections"), corrections(run), actions(run))),
    h("section", { class: "card" }, h("h2", {}, "All that is stored of it"), facts(run)));
  void drawCurve(shown, state);
}

function headline(run, control) {
  const equal = control?.compute_flops && Math.abs(run.compute_flops / control.compute_flops - 1) <= 0.01;
  const bothFinal = control?.is_final && run.is_final && control.status === "finished" && run.status === "finished";
  const one = (label, value, more) => h("div", {}, h("span", { class: "soft small" }, label), h("span", { class: "figure" }, value), h("span", { class: "small soft" }, more));
  return [
    one(run.is_final ? "Final loss" : "Last loss (mid-schedule)", loss(run.final_loss), control && equal && bothFinal ? `its control: ${loss(control.final_loss)} at equal FLOPs` : ""),
    one("Target", params(run.target_params), run.growth_factor > 1 ? `grown ${factor(run.growth_factor)} from ${params(run.base_params)}` : "not grown"),
    run.growth_factor > 1 && one("Growth timing d", tokens(run.growth_timing_tokens), `then ${tokens(run.grown_tokens)} as the target`),
    run.growth_factor <= 1 && one("Tokens", tokens(run.grown_tokens), ""),
    one("Compute", flops(run.compute_flops), "training, base included"),
    one("Wasted", run.wasted_flops ? flops(run.wasted_flops) : "nothing", run.wasted_flops && run.compute_flops ? `${percent(run.wasted_flops / run.compute_flops, 1)} of its compute, rolled back by restarts` : "no restart threw work away"),
  ];
}

function related(run, relatives, jobs) {
  const lines = RELATIVES.filter(([name]) => run[name] && run[name] !== run.run_id).map(([name, label]) => {
    const other = relatives.get(run[name]);
    return h("p", {}, `${label}: `, other ? h("a", { href: linkTo("run.html", { id: run[name] }) }, other.name) : [h("code", {}, run[name]), " (removed, or never stored)"],
      other && h("span", { class: "soft small" }, ` ${loss(other.final_loss)}, ${flops(other.compute_flops)}`));
  });
  const isTrunk = run.trunk_id === run.run_id;
  return [
    lines,
    isTrunk && h("p", {}, "It is a trunk: decay legs branch from it."),
    jobs.map((job) => h("p", {}, "Trained by the job ", h("a", { href: linkTo("job.html", { id: job.id }) }, job.name), ` (${job.state})`)),
    !lines.length && !isTrunk && !jobs.length && h("p", { class: "soft" }, "It stands alone: no control, no trunk and no job here."),
    h("p", {}, h("a", { href: linkTo("runs.html", { cohort: run.cohort, N_min: run.target_params * 0.999, N_max: run.target_params * 1.001 }) }, "All runs of this target in its cohort")),
  ];
}

function corrections(run) {
  const rows = Object.entries(run.corrections);
  if (!rows.length) return h("p", { class: "soft" }, "Nothing was corrected.");
  return table([
    { title: "What", cell: ([name]) => name }, { title: "It was", cell: ([, one]) => String(one.was ?? "empty") }, { title: "It is", cell: ([name]) => String(run[name] ?? "empty") },
    { title: "When", cell: ([, one]) => time(one.at) }, { title: "Why", cell: ([, one]) => one.why || "not said" },
  ], rows, { caption: "What was first, what it is now, and why" });
}

function actions(run) {
  if (run.status === "running") return h("p", { class: "soft small" }, "It can be corrected or removed once it has ended.");
  return h("div", { class: "row" },
    h("button", { type: "button", onclick: () => correct(run) }, "Correct it"),
    h("button", { type: "button", class: "danger", onclick: () => removeRun(run) }, "Remove it"));
}

async function correct(run) {
  const name = h("input", { id: "correct-name", value: run.name, maxlength: 64, required: true });
  const status = select("correct-status", ["finished", "diverged", "stopped"].map((one) => [one, one]), run.status);
  const basis = select("correct-basis", [["true", "final"], ["false", "mid-schedule"]], String(run.is_final));
  const lr = select("correct-lr", [["", "not said"], ["grid tuned", "grid tuned"], ["shared", "shared"], ["untuned", "untuned"]], run.lr_selection);
  const control = h("input", { id: "correct-control", value: run.control_id ?? "", placeholder: "none", spellcheck: "false" });
  const corrected = await confirmed({
    title: "Correct this run", label: "Correct it and refit", askWhy: "Why",
    what: h("p", { class: "soft" }, "What was measured cannot be corrected here. The cohort's guideline is fitted anew; what stood here before stays readable."),
    fields: h("div", {}, field("Name", name), field("Status", status), field("Last loss is", basis), field("Learning rate was", lr),
      field("Control", control, { hint: "id of the run it is compared with" })),
    act: (why) => {
      const wanted = { name: name.value.trim(), status: status.value, is_final: basis.value === "true", lr_selection: lr.value || null, control_id: control.value.trim() || null };
      const changes = Object.fromEntries(Object.entries(wanted).filter(([key, value]) => value !== run[key]));
      return patch(`runs/${run.run_id}`, { ...changes, why });
    },
  });
  if (corrected) {
    announce("The run was corrected; its cohort is being refitted");
    await show(content, "the run", load, draw);
  }
}

async function removeRun(run) {
  const removed = await confirmed({
    title: `Remove ${run.name}?`, label: "Remove it for good", danger: true, askWhy: "Why",
    what: h("p", {}, "The run and its points go, and the guideline of its cohort is fitted without them. The same log comes back only where an import says so. Diverged and stopped runs need not be removed: they are kept and not fitted."),
    act: (why) => remove(`runs/${run.run_id}`, { why }),
  });
  if (!removed) return;
  document.querySelector("h1").textContent = "Removed";
  empty(content, `${run.name} was removed`, h("p", {}, removed.reason),
    removed.control_of.length > 0 && h("p", {}, `${removed.control_of.length} run(s) have no control now.`),
    h("p", {}, h("a", { class: "button", href: linkTo("runs.html", { cohort: run.cohort }) }, "Runs of its cohort")));
}

function facts(run) {
  const number = (value) => (value === null ? null : figure(value, 6));
  const groups = {
    "Model": [["Target layers", run.num_target_layers], ["Hidden size", run.hidden_size], ["Heads", run.num_heads], ["Key-value heads", run.num_kv_heads], ["Intermediate size", run.intermediate_size], ["Vocabulary", run.vocab_size], ["Context", run.context_length && tokens(run.context_length)], ["Base layers", run.num_base_layers], ["Base", run.base_params && params(run.base_params)]],
    "Growth": [["Operator", run.operator], ["Order", run.order], ["Optimizer state", run.optimizer_state_policy]],
    "Training": [["Optimizer", run.optimizer], ["Peak learning rate", number(run.peak_lr)], ["Base's peak learning rate", number(run.base_peak_lr)], ["How it was chosen", run.lr_selection], ["Schedule", run.schedule], ["Warm-up", run.warmup_tokens && tokens(run.warmup_tokens)], ["Decay", run.decay_tokens && tokens(run.decay_tokens)], ["Planned", run.planned_tokens && tokens(run.planned_tokens)], ["Batch", run.batch_tokens && tokens(run.batch_tokens)], ["Seed of weights", run.init_seed], ["Seed of data", run.data_seed]],
    "Data and accounting": [["Corpus", run.corpus], ["Tokenizer", run.tokenizer], ["Unique tokens", run.unique_tokens && count(run.unique_tokens)], ["Target, a token", run.target_flops_per_token && flops(run.target_flops_per_token)], ["Base, a token", run.base_flops_per_token && flops(run.base_flops_per_token)], ["Came in", time(run.created_at)], ["Numerics version", run.engine_numerics_version]],
  };
  return Object.entries(groups).map(([title, pairs]) => {
    const known = pairs.filter(([, value]) => value !== null && value !== undefined);
    return known.length ? [h("h3", {}, title), h("dl", { class: "facts" }, known.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, String(value)))))] : null;
  });
}
