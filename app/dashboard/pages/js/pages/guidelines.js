// All versions of a cohort's guideline: which answers, why, how their predictions have fared, and a refit on demand.

import { get, listAll, postOnce } from "../api.js";
import { chart, colour } from "../charts.js";
import { byId, fill, h, table } from "../dom.js";
import { count, figure, interval, percent, time } from "../format.js";
import { field, select } from "../parts/fields.js";
import { activateButtons, outcome, PREDICTORS, standing } from "../parts/versions.js";
import { announce, empty, failed, show, startPage } from "../shell.js";
import { linkTo, readState, writeState } from "../url.js";

const ENDED = ["succeeded", "unchanged", "impossible", "failed"];
const REFIT = { queued: "info", running: "info", succeeded: "good", unchanged: "", impossible: "warn", failed: "bad" };
const LOOK_AGAIN_MS = 2000;
const MEASURES = {
  score_nats: ["Mean score of predicted deltas", "nats, lower is better"],
  regret_nats: ["Regret of decisions so far", "nats summed over questions, lower is better"],
};

startPage();
const content = byId("content");
let state = readState();
let cohorts = [];
let watching = 0;

await start();
addEventListener("popstate", () => { state = readState(); void start(); });

async function start() {
  await show(content, "cohorts", () => listAll("cohorts"), async (found) => {
    cohorts = found;
    if (!cohorts.length) {
      return void empty(content, "No guidelines yet", h("p", {}, "A guideline is fitted to the runs of a cohort. Import runs or grow one, and it comes by itself."),
        h("p", {}, h("a", { class: "button first", href: "import.html" }, "Import runs")));
    }
    const chosen = cohorts.find((one) => one.name === state.cohort) ?? [...cohorts].sort((a, b) => Number(Boolean(b.guideline_id)) - Number(Boolean(a.guideline_id)) || b.num_runs - a.num_runs)[0];
    state.cohort = chosen.name;
    await draw();
  });
}

function change(changes) {
  state = { ...state, ...changes };
  writeState(state);
}

async function draw() {
  const pick = field("Cohort", select("cohort", cohorts.map((one) => [one.name, `${one.name} (${count(one.num_runs)} runs)`]), state.cohort, (cohort) => { change({ cohort, with: null }); void draw(); }));
  const refit = h("div", { "aria-live": "polite" });
  const versions = h("section", { class: "card", "aria-labelledby": "versions" });
  const scores = h("section", { class: "card", "aria-labelledby": "refinement" });
  fill(content, h("div", { class: "row between" }, pick, h("button", { type: "button", class: "first", id: "refit", onclick: () => askRefit(refit, versions, scores) }, "Refit now")), refit, versions, scores);
  await Promise.all([watchRefit(refit, versions, scores), drawVersions(versions, scores)]);
}

// --- refits ----------------------------------------------------------------------------------------------------------

async function askRefit(refit, versions, scores) {
  const button = byId("refit");
  button.disabled = true;
  try {
    await postOnce("guidelines/refit", { cohort: state.cohort });
    await watchRefit(refit, versions, scores);
  } catch (error) {
    button.disabled = false;
    failed(refit, error);
  }
}

/** Tell how the newest refit stands, and look again until it has ended. */
async function watchRefit(refit, versions, scores) {
  const mine = (watching += 1);
  let wasRunning = false;
  for (;;) {
    let found;
    try {
      ({ data: [found] } = await get("guidelines/refits", { cohort: state.cohort, limit: 1 }));
    } catch (error) {
      return void failed(refit, error, () => watchRefit(refit, versions, scores));
    }
    if (mine !== watching) return;
    const ended = !found || ENDED.includes(found.state);
    byId("refit").disabled = !ended;
    fill(refit, found && h("p", { class: `note ${found.state === "failed" ? "bad" : ""}`, id: "refit-state" }, h("span", { class: `tag ${REFIT[found.state]}` }, ended ? found.state : [h("span", { class: "spin", "aria-hidden": "true" }), " ", found.state]),
      ` Last refit, asked ${time(found.asked_at)} (${found.reason})`, found.detail && `: ${found.detail}`, "."));
    if (ended) {
      if (wasRunning) {
        announce(`The refit ended: ${found.state}`);
        await drawVersions(versions, scores);
      }
      return;
    }
    wasRunning = true;
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
    if (mine !== watching) return;
  }
}

// --- versions --------------------------------------------------------------------------------------------------------

function drawVersions(versions, scores) {
  return show(versions, "versions", () => get(`cohorts/${encodeURIComponent(state.cohort)}/refinement`), async (found) => {
    const newest = [...found.versions].reverse();
    if (!newest.length) {
      fill(scores);
      scores.hidden = true;
      return void empty(versions, "No version yet", h("p", {}, "No finished run of this cohort with a final loss has been fitted."));
    }
    scores.hidden = false;
    fill(versions, h("h2", { id: "versions" }, `${newest.length} ${newest.length === 1 ? "version" : "versions"}`), versionTable(newest, versions, scores), compareForm(newest));
    await drawScores(scores, found.versions);
  });
}

function versionTable(newest, versions, scores) {
  const again = async (done) => { announce(`Version ${done.version} answers for ${done.cohort}`); await drawVersions(versions, scores); };
  return table([
    { title: "Version", cell: (one) => [h("a", { href: linkTo("guideline.html", { id: one.id }) }, `Version ${one.version}`), " ", standing(one)] },
    { title: "Fitted", cell: (one) => time(one.created_at) },
    { title: "Runs", number: true, cell: (one) => count(one.num_runs) },
    { title: "Promoted or not, and why", cell: (one) => [outcome(one), " ", one.reason, one.comparison && h("span", { class: "soft small" }, ` Against version ${one.compared_with_version}: ${figure(one.comparison.difference_nats)} nats (80%: ${interval(one.comparison.interval_nats)}) over ${one.comparison.num_cases} cases.`)] },
    { title: "Own score", number: true, hint: "mean weighted interval score of deltas that it predicted before they were seen", cell: (one) => (one.scores.num_deltas ? `${figure(one.scores.delta_score_nats)} nats` : "none yet") },
    { title: "Inside 80%", number: true, hint: "deltas inside their 80% intervals", cell: (one) => (one.scores.num_deltas ? `${Math.round(one.scores.delta_coverage * one.scores.num_deltas)} of ${one.scores.num_deltas}` : "\u2013") },
    { title: h("span", { class: "visually-hidden" }, "Deeds"), cell: (one) => activateButtons({ ...one, cohort: state.cohort }, again) },
  ], newest, { caption: "Newest first. Scores are of predictions stored before their runs were seen." });
}

function compareForm(newest) {
  if (newest.length < 2) return null;
  const pairs = newest.map((one) => [one.id, `Version ${one.version}${one.is_active ? " (active)" : ""}`]);
  const before = select("before", pairs, newest[1].id);
  const after = select("after", pairs, newest[0].id);
  return h("form", { class: "row", onsubmit: (event) => { event.preventDefault(); location.assign(linkTo("guideline.html", { id: before.value, with: after.value })); } },
    h("label", { for: "before" }, "Compare"), h("span", {}, before), h("label", { for: "after" }, "with"), h("span", {}, after), h("button", {}, "Show what changed"));
}

// --- scores ----------------------------------------------------------------------------------------------------------

async function drawScores(scores, versions) {
  const measure = MEASURES[state.measure] ? state.measure : "score_nats";
  const [title, unit] = MEASURES[measure];
  const last = versions.at(-1).standings;
  const known = PREDICTORS.filter(([name]) => versions.some((one) => one.standings[name]?.[measure] !== null && one.standings[name]?.[measure] !== undefined));
  const area = h("div", {});
  fill(scores, h("h2", { id: "refinement" }, "Does it get better with every run?"));
  if (!known.length) {
    return void scores.append(h("p", { class: "soft" }, "Nothing was predicted before it was seen yet: the next grown run with a control at equal FLOPs will be, and then scored here."));
  }
  scores.append(h("div", { class: "controls" }, field("Shown", select("measure", Object.entries(MEASURES).map(([name, [text]]) => [name, text]), measure, (value) => { change({ measure: value }); void drawScores(scores, versions); }))), area);
  const value = (one, name) => one.standings[name]?.[measure] ?? null;
  await chart(area, () => ({
    traces: known.map(([name, text, shade]) => ({
      x: versions.map((one) => one.version), y: versions.map((one) => value(one, name)), name: text, mode: "lines+markers", connectgaps: true,
      line: { color: colour(shade), dash: name === "never" ? "dot" : name === "gstack" ? "dash" : "solid", width: 2 }, marker: { size: 7 },
      text: versions.map((one) => `${text}: ${figure(value(one, name))} nats over ${one.standings[name]?.num_cases ?? 0} cases, version ${one.version}`), hovertemplate: "%{text}<extra></extra>",
    })),
    layout: { xaxis: { title: { text: "version" }, tickformat: "d", dtick: versions.length > 15 ? null : 1 }, yaxis: { title: { text: measure === "score_nats" ? "mean score (nats)" : "regret (nats)" }, rangemode: "tozero" } },
    summary: `${title} (${unit}) by version, over the same runs for every predictor, beside never growing${known.some(([name]) => name === "gstack") ? " and the published rule" : ""}`,
    columns: [{ title: "Version", cell: (one) => one.version }, { title: "Cases", number: true, cell: (one) => one.standings.active?.num_cases ?? 0 }, ...known.map(([name, text]) => ({ title: text, number: true, cell: (one) => `${figure(value(one, name))} nats` }))],
    rows: versions,
  }));
  scores.append(standingTable(last));
}

function standingTable(standings) {
  const rows = Object.entries(standings).map(([name, one]) => ({ name: PREDICTORS.find(([known]) => known === name)?.[1] ?? `rule: ${name.replaceAll("_", " ")}`, ...one }));
  return h("details", { open: rows.length <= 4 }, h("summary", {}, "All predictors on the same runs"), table([
    { title: "Predictor", cell: (one) => one.name }, { title: "Cases", number: true, cell: (one) => one.num_cases },
    { title: "Mean score (nats)", number: true, cell: (one) => figure(one.score_nats) }, { title: "Wrong signs", number: true, cell: (one) => `${one.wrong_signs} of ${one.sign_cases}` },
    { title: "Regret (nats)", number: true, cell: (one) => `${figure(one.regret_nats)} over ${one.num_questions}` },
    { title: "Inside 80%", number: true, cell: (one) => (one.coverage === null ? "says no interval" : `${percent(one.coverage)} (80%: ${interval(one.coverage_interval, percent)})`) },
  ], rows, { caption: "As the newest version found them. The published rule and others decide without a number, so they have regret and signs, but no score." }));
}
