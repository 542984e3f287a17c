// All stored runs: found by what they are, laid over each other, page by page.

import { get, listAll } from "../api.js";
import { byId, debounce, fill, h, table } from "../dom.js";
import { count, factor, loss, parse, power, time } from "../format.js";
import { MOST_CURVES } from "../parts/curves.js";
import { field, mark, select } from "../parts/fields.js";
import { runView } from "../parts/run_view.js";
import { announce, empty, failed, loading, startPage } from "../shell.js";
import { linkTo, readState, writeState } from "../url.js";

const ROWS = 50;
const STATUS = { finished: "good", diverged: "bad", stopped: "warn", running: "info" };
// Of the URL -> of the API: the ends of a range, as people type them.
const RANGES = [
  ["N", "Target size N", "parameters", "target_params"], ["g", "Growth factor g", "1: not grown", "growth_factor"],
  ["d", "Growth timing d", "tokens", "growth_timing_tokens"],
];
const FILTERS = ["search", "cohort", "source", "status", "basis", ...RANGES.flatMap(([name]) => [`${name}_min`, `${name}_max`])];

startPage();
const content = byId("content");
let state = readState();
const chosen = new Map();
let listing = new AbortController();

const filters = h("form", { class: "card", role: "search", "aria-label": "Runs", onsubmit: (event) => event.preventDefault() });
const overlay = h("section", { class: "card", "aria-labelledby": "curves" });
const view = h("div", {});
const rows = h("section", { "aria-label": "Runs found" });
const drawCurves = runView(view, (changes) => { update(changes); void refreshCurves(); });
fill(content, filters, overlay, rows);

await Promise.all([drawFilters(), refreshRows(), restoreChosen()]);
addEventListener("popstate", async () => {
  state = readState();
  await Promise.all([drawFilters(), refreshRows(), restoreChosen()]);
});

function update(changes, options) {
  state = { ...state, ...changes };
  for (const name of Object.keys(state)) if (state[name] === "" || state[name] === null || state[name] === undefined) delete state[name];
  writeState(state, options);
}

// --- filters ---------------------------------------------------------------------------------------------------------

async function drawFilters() {
  const cohorts = await listAll("cohorts").catch(() => []);
  const set = (name) => (value) => filter({ [name]: value });
  const input = (name, attributes) => {
    const element = h("input", { id: name, value: state[name] ?? "", autocomplete: "off", ...attributes });
    element.addEventListener("input", debounce(() => filter({ [name]: element.value.trim() }), 250));
    return element;
  };
  const ranges = RANGES.map(([name, label, unit]) => h("div", { class: "field", role: "group", "aria-label": label },
    h("label", { for: `${name}_min` }, label, " ", h("span", { class: "soft small" }, `(${unit})`)),
    h("div", { class: "range" }, input(`${name}_min`, { placeholder: "from", inputmode: "decimal" }),
      input(`${name}_max`, { placeholder: "to", inputmode: "decimal", "aria-label": `${label}, to` }))));
  fill(filters, h("div", { class: "filters" },
    field("Search", input("search", { type: "search", placeholder: "words in the name or id" }), { className: "wide" }),
    field("Cohort", select("cohort", [["", "all"], ...cohorts.map((one) => [one.name, `${one.name} (${count(one.num_runs)} runs)`])], state.cohort, set("cohort"))),
    field("Source", select("source", [["", "all"], ["job", "job"], ["import", "import"], ["published", "published"]], state.source, set("source"))),
    field("Status", select("status", [["", "all"], ...Object.keys(STATUS).map((one) => [one, one])], state.status, set("status"))),
    field("Last loss", select("basis", [["", "all"], ["final", "final"], ["mid", "mid-schedule"]], state.basis, set("basis")))),
  h("div", { class: "filters ranges" }, ranges),
  h("div", { class: "row between" },
    h("button", { type: "button", class: "quiet", onclick: () => { filter(Object.fromEntries(FILTERS.map((name) => [name, ""]))); void drawFilters(); } }, "Clear all filters"),
    h("a", { class: "button", href: linkTo("import.html", { cohort: state.cohort }) }, "Import runs")));
}

function filter(changes) {
  update({ ...changes, after: "" });
  void refreshRows();
}

/** The query of GET /runs; null where a range cannot be read, which its field then says. */
function query() {
  const asked = { limit: ROWS, after: state.after, search: state.search, cohort: state.cohort, source: state.source, status: state.status };
  if (state.basis) asked.is_final = state.basis === "final";
  let readable = true;
  for (const [name, , , column] of RANGES) {
    for (const end of ["min", "max"]) {
      const text = state[`${name}_${end}`];
      const value = text ? parse(text) : null;
      const wrong = text && !Number.isFinite(value) ? "a number such as 0.5, 7B or 1.2e12" : null;
      const input = document.getElementById(`${name}_${end}`);
      if (input) mark(input, wrong);
      if (wrong) readable = false;
      else asked[`${end}_${column}`] = value;
    }
  }
  return readable ? asked : null;
}

// --- rows ------------------------------------------------------------------------------------------------------------

async function refreshRows() {
  const asked = query();
  if (!asked) return;
  listing.abort();
  listing = new AbortController();
  if (!rows.childElementCount) loading(rows, "runs");
  rows.setAttribute("aria-busy", "true");
  try {
    const page = await get("runs", asked, { signal: listing.signal });
    rows.removeAttribute("aria-busy");
    drawRows(page);
  } catch (error) {
    if (error.name !== "AbortError") failed(rows, error, refreshRows);
  }
}

function drawRows(page) {
  const isFiltered = FILTERS.some((name) => state[name]) || state.after;
  if (!page.data.length) {
    announce("No run found");
    return void (isFiltered
      ? empty(rows, "No run fits", h("p", {}, "Widen a range, or clear the filters."))
      : empty(rows, "No runs are stored yet", h("p", {}, "Runs come in when a growth job ends, or by importing the logs of your own trainer."),
        h("p", {}, h("a", { class: "button first", href: "import.html" }, "Import runs"))));
  }
  const columns = [
    { title: h("span", { class: "visually-hidden" }, "Draw"), cell: (run) => chooser(run) },
    { title: "Name", cell: (run) => h("a", { href: linkTo("run.html", { id: run.run_id }) }, run.name || run.run_id) },
    { title: "Cohort", cell: (run) => run.cohort },
    { title: "Status", cell: (run) => h("span", { class: `tag ${STATUS[run.status]}` }, run.status) },
    { title: "Source", cell: (run) => run.source },
    { title: "Target N", number: true, hint: "non-embedding parameters", cell: (run) => count(run.target_params) },
    { title: "Factor g", number: true, hint: "growth factor", cell: (run) => (run.growth_factor > 1 ? factor(run.growth_factor) : "not grown") },
    { title: "Timing d", number: true, hint: "tokens the base saw before growth", cell: (run) => (run.growth_factor > 1 ? count(run.growth_timing_tokens) : "\u2013") },
    { title: "Tokens D", number: true, hint: "tokens the target saw", cell: (run) => count(run.grown_tokens) },
    { title: "FLOPs", number: true, hint: "training FLOPs, base included", cell: (run) => power(run.compute_flops) },
    { title: "Last loss", number: true, hint: "nats", cell: (run) => [loss(run.final_loss), " ", run.final_loss !== null && !run.is_final ? h("span", { class: "tag warn" }, "mid-schedule") : null] },
    { title: "Came in", cell: (run) => time(run.created_at) },
  ];
  const shown = page.data.length === 1 ? "1 run" : `${count(page.data.length)} runs`;
  const told = `${shown}${page.has_more ? ", more follow" : ""}, newest first${state.after ? " (an older page)" : ""}`;
  const made = table(columns, page.data, { caption: told });
  made.classList.add("dense");
  for (const row of made.querySelectorAll("tbody tr")) row.children[1].classList.add("name");
  fill(rows, made, h("div", { class: "row" },
    state.after && h("button", { type: "button", onclick: () => turn("") }, "Newest runs"),
    page.has_more && h("button", { type: "button", onclick: () => turn(page.next) }, "Older runs")));
  tickChosen();
  announce(told);
}

function turn(after) {
  update({ after }, { push: true });
  void refreshRows();
  byId("main").scrollIntoView();
}

function chooser(run) {
  const box = h("input", { type: "checkbox", dataset: { run: run.run_id }, "aria-label": `Draw ${run.name}` });
  box.addEventListener("change", () => {
    if (box.checked && chosen.size >= MOST_CURVES) {
      box.checked = false;
      return announce(`At most ${MOST_CURVES} curves are drawn at a time`);
    }
    if (box.checked) chosen.set(run.run_id, run);
    else chosen.delete(run.run_id);
    box.closest("tr").classList.toggle("chosen", box.checked);
    update({ runs: [...chosen.keys()].join(",") });
    void refreshCurves();
  });
  return box;
}

// --- curves ----------------------------------------------------------------------------------------------------------

async function restoreChosen() {
  const wanted = (state.runs ?? "").split(",").filter(Boolean).slice(0, MOST_CURVES);
  const found = await Promise.all(wanted.map((id) => chosen.get(id) ?? get(`runs/${encodeURIComponent(id)}`).catch(() => null)));
  chosen.clear();
  for (const run of found) if (run) chosen.set(run.run_id, run);
  tickChosen();
  await refreshCurves();
}

async function refreshCurves() {
  const runs = [...chosen.values()];
  if (!runs.length) {
    return void fill(overlay, h("h2", { id: "curves" }, "Curves"),
      h("div", { class: "state" }, h("p", { class: "soft" }, "Tick runs in the table to lay their curves over each other and to read speedups.")));
  }
  fill(overlay, h("div", { class: "row between" }, h("h2", { id: "curves" }, `Curves of ${runs.length} ${runs.length === 1 ? "run" : "runs"}`),
    h("button", { type: "button", onclick: clearChosen }, "Take all off")), view);
  await drawCurves(runs, state);
}

function clearChosen() {
  chosen.clear();
  update({ runs: "" });
  tickChosen();
  void refreshCurves();
}

/** The rows that stand there tell which runs are chosen, whichever of the two came first. */
function tickChosen() {
  for (const box of rows.querySelectorAll("input[data-run]")) {
    box.checked = chosen.has(box.dataset.run);
    box.closest("tr").classList.toggle("chosen", box.checked);
  }
}
