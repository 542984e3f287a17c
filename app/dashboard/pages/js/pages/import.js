// Runs from elsewhere: files dropped or chosen, a dry run that shows what would come in, then the import itself.

import { listAll, post, upload } from "../api.js";
import { byId, fill, h, table } from "../dom.js";
import { count, factor, flops, loss, percent, tokens } from "../format.js";
import { applyMapping, importFields, markErrors, readOptions } from "../parts/import_form.js";
import { announce, failed, show, startPage } from "../shell.js";
import { linkTo, readState, writeState } from "../url.js";

// What the files are -> the parts of the form that they are sent as.
const WAYS = {
  one: { title: "One run", about: "one log, or its parts in the order written", zones: [["files", "Drop the run's log here"]] },
  each: { title: "A run each", about: "every file is a run, named as its file", zones: [["files", "Drop one log a run here"]] },
  growth: { title: "A growth in two logs", about: "the base's log and the grown stage's", zones: [["base", "Drop the base's log here"], ["grown", "Drop the grown stage's log here"]] },
};

startPage();
const content = byId("content");
const state = readState();
const dropped = { files: [], base: [], grown: [] };
let form;
let saved = {};
let checked = null; // what the dry run saw: an import sends exactly that
let serial = 0;

const zones = h("div", { class: "columns" });
const result = h("section", { "aria-live": "polite", "aria-label": "Dry run" });

function draw({ cohorts, mappings }) {
  form = importFields({ cohorts, mappings });
  form.inputs.cohort.value = state.cohort ?? (cohorts.length === 1 ? cohorts[0] : "");
  form.inputs.mapping.addEventListener("change", () => {
    saved = mappings.find((one) => one.name === form.inputs.mapping.value)?.options ?? {};
    applyMapping(form.inputs, saved);
    remember({ mapping: form.inputs.mapping.value });
    stale();
  });
  if (state.mapping && mappings.some((one) => one.name === state.mapping)) {
    form.inputs.mapping.value = state.mapping;
    saved = mappings.find((one) => one.name === state.mapping).options;
    applyMapping(form.inputs, saved);
  }
  form.inputs.cohort.addEventListener("change", () => remember({ cohort: form.inputs.cohort.value }));
  form.element.addEventListener("input", stale);
  const ways = h("fieldset", {}, h("legend", {}, "The files are"), Object.entries(WAYS).map(([name, way]) =>
    h("label", { for: `way-${name}` }, h("input", { type: "radio", name: "way", id: `way-${name}`, checked: name === wayName(), onchange: () => { remember({ way: name }); drawZones(); stale(); } }),
      ` ${way.title} `, h("span", { class: "soft small" }, way.about))));
  const check = h("form", { class: "card stack", novalidate: true, onsubmit: (event) => { event.preventDefault(); void dryRun(); } },
    h("h2", {}, "2. What they say, and what they do not"), form.element,
    h("div", { class: "row" }, h("button", { class: "first" }, "Show what would come in"), h("span", { class: "soft small" }, "A dry run: nothing is stored.")));
  drawZones();
  return [
    h("p", {}, "Runs of your own trainer become evidence like any other: a cohort that gains runs is refitted. Nothing is stored before you have seen what would come in."),
    h("section", { class: "card stack" }, h("h2", {}, "1. Files"), ways, zones),
    check, result,
    h("details", { class: "card" }, h("summary", {}, "Or take the grid of growth runs that ships with Growthlaw"),
      h("p", {}, "Small real runs, made by this project: a cohort to try everything on."), h("button", { type: "button", onclick: () => dryRunBundled() }, "Show what would come in of the grid")),
  ];
}

const wayName = () => (WAYS[state.way] ? state.way : "one");

function remember(changes) {
  Object.assign(state, changes);
  writeState(state);
}

// --- files -----------------------------------------------------------------------------------------------------------

function drawZones() {
  fill(zones, WAYS[wayName()].zones.map(([part, label]) => zone(part, label)));
  form.growth.hidden = wayName() !== "growth";
  form.inputs.name.closest(".field").hidden = wayName() === "each";
}

function zone(part, label) {
  const input = h("input", { type: "file", multiple: true, id: `choose-${part}`, class: "visually-hidden", onchange: () => { take(part, [...input.files]); input.value = ""; } });
  const files = dropped[part];
  const element = h("div", { class: "drop", dataset: { part } }, h("p", {}, h("strong", {}, label), " or "),
    input, h("label", { for: input.id, class: "button" }, "Choose files"),
    files.length > 0 && h("ul", {}, files.map((file) => h("li", {}, file.name, " ", h("span", { class: "soft small" }, `${count(file.size)}B`), " ",
      h("button", { type: "button", class: "quiet", "aria-label": `Leave out ${file.name}`, onclick: () => { dropped[part] = dropped[part].filter((one) => one !== file); drawZones(); stale(); } }, "leave out")))));
  element.addEventListener("dragover", (event) => { event.preventDefault(); element.classList.add("over"); });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => { event.preventDefault(); take(part, [...event.dataTransfer.files]); });
  return element;
}

// A file that misses the place would be opened instead of the page.
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());

function take(part, files) {
  const names = new Set(files.map((file) => file.name));
  dropped[part] = [...dropped[part].filter((file) => !names.has(file.name)), ...files];
  if (!form.inputs.name.value && wayName() !== "each") form.inputs.name.value = stem(dropped[part][0]);
  drawZones();
  announce(`${files.length} ${files.length === 1 ? "file" : "files"} taken`);
  stale();
  const complete = WAYS[wayName()].zones.every(([one]) => dropped[one].length);
  if (complete && form.inputs.cohort.value) void dryRun();
}

const stem = (file) => file.name.replace(/(\.(csv|tsv|jsonl?|txt|log|gz|xz|parquet))+$/i, "").slice(0, 64);

/** What was shown is no longer what would be sent. */
function stale() {
  checked = null;
  if (result.childElementCount) fill(result, h("p", { class: "note" }, "Something was changed since the dry run. Look again before you import."));
}

// --- dry run and import ----------------------------------------------------------------------------------------------

function request() {
  const way = wayName();
  const options = readOptions(form.inputs, { saved, isGrowth: way === "growth", needsName: way !== "each" });
  const missing = WAYS[way].zones.find(([part]) => !dropped[part].length);
  if (missing) fill(result, h("p", { class: "note warn", role: "alert" }, `${missing[1].replace("Drop", "Drop or choose")}, in part 1 above.`));
  if (!options || missing) return null;
  const parts = WAYS[way].zones.flatMap(([part]) => dropped[part].map((file) => [part, file]));
  const body = way === "each" ? { runs: dropped.files.map((file) => ({ ...options, name: stem(file), files: [file.name] })), skip_bad: true } : options;
  return () => {
    const sent = new FormData();
    sent.set("options", JSON.stringify(body));
    for (const [part, file] of parts) sent.append(part, file, file.name);
    return sent;
  };
}

async function dryRun() {
  const made = request();
  if (!made) return document.querySelector("[aria-invalid=true]")?.focus();
  await seen((onProgress) => upload("runs/import", made(), { query: { dry_run: true }, onProgress }), (onProgress) => upload("runs/import", made(), { onProgress }));
}

function dryRunBundled() {
  return seen(() => post("runs/import", { bundled: true }, { query: { dry_run: true } }), () => post("runs/import", { bundled: true }));
}

async function seen(look, store) {
  const mine = (serial += 1);
  const progress = waiting("Reading the files");
  try {
    const found = await look(progress);
    if (mine !== serial) return;
    checked = store;
    drawFound(found);
  } catch (error) {
    if (mine === serial) problem(error);
  }
}

/** A bar for what is being sent; behind it the service reads and checks. */
function waiting(what) {
  const bar = h("progress", { max: 1, "aria-label": what });
  const told = h("p", { role: "status" }, what);
  fill(result, h("div", { class: "card" }, told, bar));
  return (share) => {
    if (share < 1) { bar.value = share; told.textContent = `Sending: ${percent(share)}`; } else { bar.removeAttribute("value"); told.textContent = `${what} ...`; }
  };
}

function problem(error) {
  const errors = error.problem?.errors ?? [];
  const left = markErrors(form.inputs, errors);
  if (error.status === 0 || !errors.length) return void failed(result, error);
  const at = errors.length - left.length;
  fill(result, h("div", { class: "note bad", role: "alert" }, h("h3", {}, "Nothing can come in like this"),
    at > 0 && h("p", {}, `${at} ${at === 1 ? "field says" : "fields say"} what is wrong.`), left.length > 0 && h("ul", {}, left.map((one) => h("li", {}, one.detail)))));
  document.querySelector("[aria-invalid=true]")?.focus();
}

const OUTCOMES = { added: ["new", "good"], known: ["known already", ""], replaced: ["takes the place of the one there", "warn"], removed: ["was removed; stays away", "warn"] };

function drawFound(found) {
  const coming = found.cohorts.reduce((sum, one) => sum + one.num_runs_added, 0) + found.runs.filter((run) => run.outcome === "replaced").length;
  const warnings = found.runs.flatMap((run) => run.warnings.map((text) => [run.name, text]));
  const go = h("button", { type: "button", class: "first", disabled: coming === 0, onclick: () => importNow(coming) }, coming ? `Import ${coming} ${coming === 1 ? "run" : "runs"}` : "Nothing new to import");
  fill(result, h("section", { class: "card stack" }, h("h2", {}, "3. What would come in"), cohortTable(found.cohorts), runTable(found.runs),
    warnings.length > 0 && h("div", { class: "note warn" }, h("h3", {}, "Look at these"), h("ul", {}, warnings.map(([name, text]) => h("li", {}, h("strong", {}, name), `: ${text}`)))),
    leftOut(found.left_out), h("div", { class: "row" }, go, h("span", { class: "soft small" }, "All of it comes in, or nothing. The guideline of the cohort is then fitted anew."))));
  announce(`The dry run found ${coming} runs to import`);
}

async function importNow(coming) {
  const store = checked;
  if (!store) return;
  checked = null;
  const progress = waiting(`Storing ${coming} ${coming === 1 ? "run" : "runs"}`);
  try {
    drawDone(await store(progress));
  } catch (error) {
    problem(error);
  }
}

function drawDone(done) {
  const added = done.cohorts.reduce((sum, one) => sum + one.num_runs_added, 0);
  const names = done.cohorts.map((one) => one.cohort);
  Object.keys(dropped).forEach((part) => { dropped[part] = []; });
  form.inputs.name.value = "";
  drawZones();
  fill(result, h("section", { class: "card stack" }, h("div", { class: "note good", role: "status" }, h("h3", {}, `${added} ${added === 1 ? "run" : "runs"} came in`), h("p", {}, "The cohort is being refitted in the background.")),
    cohortTable(done.cohorts), runTable(done.runs), leftOut(done.left_out),
    h("div", { class: "row" }, names.map((cohort) => [h("a", { class: "button", href: linkTo("runs.html", { cohort }) }, `Runs of ${cohort}`), h("a", { class: "button", href: linkTo("guidelines.html", { cohort }) }, `Guidelines of ${cohort}`)]))));
}

function cohortTable(cohorts) {
  return table([
    { title: "Cohort", cell: (one) => one.cohort }, { title: "New runs", number: true, cell: (one) => count(one.num_runs_added) }, { title: "Known already", number: true, cell: (one) => count(one.num_runs_known) },
    { title: "Removed before", number: true, cell: (one) => count(one.num_runs_removed) }, { title: "New points", number: true, cell: (one) => count(one.num_points_added) },
  ], cohorts, { caption: "By cohort" });
}

function runTable(runs) {
  if (!runs.length) return null;
  const made = table([
    { title: "Run", cell: (run) => (run.run_id ? h("a", { href: linkTo("run.html", { id: run.run_id }) }, run.name) : run.name) },
    { title: "", cell: (run) => h("span", { class: `tag ${OUTCOMES[run.outcome][1]}` }, OUTCOMES[run.outcome][0]) }, { title: "Status", cell: (run) => run.status },
    { title: "Factor g", number: true, cell: (run) => (run.growth_factor > 1 ? factor(run.growth_factor) : "not grown") }, { title: "Timing d", number: true, cell: (run) => tokens(run.growth_timing_tokens || null) },
    { title: "Tokens D", number: true, cell: (run) => tokens(run.grown_tokens) }, { title: "Compute", number: true, cell: (run) => flops(run.compute_flops) },
    { title: "Last loss", number: true, cell: (run) => [loss(run.final_loss), run.is_final ? null : " (mid-schedule)"] }, { title: "Points", number: true, cell: (run) => count(run.num_points) },
    { title: "Data sets", cell: (run) => run.datasets.join(", ") || "\u2013" },
  ], runs, { caption: "Run by run" });
  made.classList.add("dense");
  return made;
}

function leftOut(runs) {
  return runs.length > 0 && h("div", { class: "note bad" }, h("h3", {}, `${runs.length} ${runs.length === 1 ? "file makes" : "files make"} no run and would stay out`), h("ul", {}, runs.map((one) => h("li", {}, h("strong", {}, one.name), `: ${one.reason}`))));
}

await show(content, "cohorts and mappings", async () => {
  const [cohorts, mappings] = await Promise.all([listAll("cohorts"), listAll("mappings")]);
  return { cohorts: cohorts.map((one) => one.name), mappings };
}, draw);
