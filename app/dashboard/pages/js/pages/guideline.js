// One version of a guideline: what it saw, what it says, how far that can be trusted, and what it cannot tell.

import { get } from "../api.js";
import { byId, fill, h, table } from "../dom.js";
import { count, figure, flops, interval, params, percent, time } from "../format.js";
import { drawCoverage, drawPredicted, heldOutTable } from "../parts/calibration.js";
import { differences } from "../parts/differences.js";
import { drawValleys } from "../parts/valleys.js";
import { activateButtons, outcome, standing } from "../parts/versions.js";
import { announce, empty, show, startPage } from "../shell.js";
import { linkTo, readState, writeState } from "../url.js";

startPage();
const content = byId("content");
let state = readState();

if (!state.id) empty(content, "Which guideline?", h("p", {}, "Choose a version in ", h("a", { href: "guidelines.html" }, "the list of guidelines"), "."));
else if (state.with) await show(content, "the comparison", () => get(`guidelines/${encodeURIComponent(state.id)}/diff/${encodeURIComponent(state.with)}`), drawDifferences);
else await show(content, "the guideline", load, draw);

async function load() {
  const path = `guidelines/${encodeURIComponent(state.id)}`;
  const [guideline, evidence] = await Promise.all([get(path), get(`${path}/evidence`)]);
  const others = await get("guidelines", { cohort: guideline.cohort, limit: 200 });
  return { guideline, evidence, others: others.data.filter((one) => one.id !== guideline.id) };
}

function title(text) {
  document.title = `${text} \u00b7 Growthlaw`;
  document.querySelector("h1").textContent = text;
}

function drawDifferences(found) {
  title(`${found.before.cohort}: version ${found.before.version} against version ${found.after.version}`);
  const link = (one) => h("a", { href: linkTo("guideline.html", { id: one.id }) }, `version ${one.version}`);
  fill(content, h("p", { class: "row" }, h("span", {}, "From ", link(found.before), " ", standing(found.before)), h("span", {}, "to ", link(found.after), " ", standing(found.after)),
    h("a", { class: "button", href: linkTo("guideline.html", { id: found.after.id, with: found.before.id }) }, "The other way round")), differences(found));
}

async function draw({ guideline, evidence, others }) {
  const { body } = guideline;
  title(`${guideline.cohort}, version ${guideline.version}`);
  const valleys = h("div", {});
  const redraw = (changes) => { state = { ...state, ...changes }; writeState(state); void drawValleys(valleys, evidence.valleys, state, redraw); };
  const predicted = h("div", {});
  const coverage = h("div", {});
  fill(content, header(guideline, others),
    h("section", { class: "card headline", "aria-label": "In short" }, headline(body, evidence)),
    cannotTell(body),
    h("section", { class: "card" }, h("h2", {}, "Valleys: when to grow"), h("p", { class: "soft" }, "Marks are what was run, with the 80% interval of their seeds; lines and bands what the fitted laws say at the same compute, with theirs."), valleys),
    h("div", { class: "columns" },
      h("section", { class: "card" }, h("h2", {}, "Predicted against observed"), predicted),
      h("section", { class: "card" }, h("h2", {}, "Calibration"), coverage)),
    h("section", { class: "card" }, h("h2", {}, "Held-out scores"), heldOutTable(body.held_out) ?? h("p", { class: "soft" }, "No scores on held-out folds: that takes ten pairs or more. No chance that growth helps is given without them.")),
    h("section", { class: "card" }, h("h2", {}, "Laws and their weights"), laws(evidence.laws)),
    behind(guideline));
  if (evidence.valleys.length) await drawValleys(valleys, evidence.valleys, state, redraw);
  else fill(valleys, h("p", { class: "state" }, "No grown run has a control at equal FLOPs yet."));
  if (evidence.predicted.length) await Promise.all([drawPredicted(predicted, evidence.predicted), drawCoverage(coverage, evidence.calibration)]);
  else for (const place of [predicted, coverage]) fill(place, h("p", { class: "soft" }, "Nothing was predicted by this version before it had seen it, and it had too few pairs to hold any out: nothing says yet how far its intervals can be trusted."));
}

function header(guideline, others) {
  const again = async (done) => { announce(`Version ${done.version} answers`); await show(content, "the guideline", load, draw); };
  const pick = h("select", { id: "with", onchange: () => pick.value && location.assign(linkTo("guideline.html", { id: pick.value, with: guideline.id })) },
    h("option", { value: "" }, "choose a version"), others.map((one) => h("option", { value: one.id }, `Version ${one.version}${one.is_active ? " (active)" : ""}`)));
  return [
    h("p", { class: "row" }, standing(guideline), outcome(guideline), h("span", {}, `fitted ${time(guideline.created_at)} on ${count(guideline.num_runs)} runs`), h("code", { class: "small soft" }, guideline.id)),
    h("p", {}, guideline.reason),
    h("div", { class: "row" }, activateButtons(guideline, again), h("a", { class: "button", href: linkTo("guidelines.html", { cohort: guideline.cohort }) }, "All versions"),
      others.length > 0 && [h("label", { for: "with" }, "What changed since"), h("span", {}, pick)]),
  ];
}

function headline(body, evidence) {
  const one = (label, value, more) => h("div", {}, h("span", { class: "soft small" }, label), h("span", { class: "figure" }, value), h("span", { class: "small soft" }, more));
  const span = (pair, how) => (pair ? (pair[0] === pair[1] ? how(pair[0]) : interval(pair, how)) : "none");
  const tests = Object.values(body.held_out ?? {}).filter((test) => test && typeof test === "object" && "sign_hits" in test);
  const worst = tests.sort((a, b) => a.sign_hits / a.sign_cases - b.sign_hits / b.sign_cases)[0];
  return [
    one("Pairs at equal FLOPs", count(body.pairs.length), `${count(body.controls.length)} runs of one size beside them`),
    one("Targets seen", span(body.known.target_params, count), "non-embedding parameters"),
    one("Growth factors seen", span(body.known.growth_factor, (value) => figure(value)), ""),
    one("Compute seen", span(body.known.compute_flops, (value) => flops(value).replace(" FLOPs", "")), "FLOPs"),
    one("Right signs, held out", worst ? `${worst.sign_hits} of ${worst.sign_cases}` : "not tested", worst ? `80%: ${interval(worst.sign_interval, percent)}; the harder of its tests` : "ten pairs are needed"),
    one("Seed spread of a run", body.noise ? `${figure(body.noise.sd_nats)} nats` : "unknown", body.noise?.num_repeats ? `measured, ${body.noise.num_repeats} repeats` : "assumed: no design was repeated"),
  ];
}

function cannotTell(body) {
  const list = (sentences) => h("ul", {}, sentences.map((text) => h("li", {}, text)));
  const parts = [["What the data cannot tell", body.cannot_identify], ["What is borrowed from elsewhere", body.borrowed], ["Warnings", body.warnings]].filter(([, sentences]) => sentences.length);
  if (!parts.length && !body.provisional) return null;
  return h("section", { class: "note warn stack", "aria-label": "What the data cannot tell" },
    body.provisional && h("p", {}, h("strong", {}, "Provisional: "), "fewer than ten pairs stand behind it, so it leans on what is known elsewhere."),
    parts.map(([label, sentences]) => h("div", {}, h("h3", {}, label), list(sentences))));
}

function laws(found) {
  if (!found.length) return h("p", { class: "soft" }, "No law could be fitted; it answers with what was observed.");
  const bar = (one) => h("div", { class: "bar", role: "img", "aria-label": percent(one.weight) }, h("span", { style: `width: ${(100 * one.weight).toFixed(1)}%` }));
  return table([
    { title: "Law", cell: (one) => one.law.replaceAll("_", " ") }, { title: "Of", cell: (one) => (one.kind === "scratch" ? "scratch losses" : "growth") },
    { title: "Weight", number: true, cell: (one) => percent(one.weight) }, { title: "", cell: bar },
    { title: "Parameters (80%)", cell: (one) => one.parameters.map((p, place) => [place ? ", " : "", h("code", {}, p.name), ` ${figure(p.median)} (${interval([p.low, p.high])})`]) }, { title: "What inner folds said", cell: (one) => one.verdict || "\u2013" },
  ], found, { caption: "Weight: share of the draws that answer. Growth laws are weighted by inner folds; parameters are medians with the central 80% over the draws." });
}

function behind(guideline) {
  const { body } = guideline;
  const excluded = Object.entries(body.num_excluded).map(([why, number]) => `${number} ${why.replaceAll("_", "-")}`);
  return h("section", { class: "card" }, h("h2", {}, "What it was made of"),
    h("p", {}, `${count(guideline.num_runs)} runs with ${body.basis === "final" ? "final" : "mid-schedule"} losses${excluded.length ? `; not used: ${excluded.join(", ")}` : ""}. Law: ${body.law}. Largest target: ${params(body.known.target_params?.[1])}.`),
    h("p", { class: "small soft" }, "Data hash ", h("code", {}, guideline.data_hash.slice(0, 16)), `, seed ${body.seed}, `, Object.entries(body.library_versions).map(([name, version]) => `${name} ${version}`).join(", ")),
    h("details", {}, h("summary", {}, "The runs"), h("ul", {}, body.run_ids.map((id) => h("li", {}, h("a", { href: linkTo("run.html", { id }) }, id))))),
    h("p", {}, h("a", { href: linkTo("runs.html", { cohort: guideline.cohort }) }, "All runs of this cohort")));
}
