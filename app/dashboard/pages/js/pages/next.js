// What to run next: the question on the left, the plan on the right; the question stands in the URL.

import { ApiError, get, listAll, post } from "../api.js";
import { byId, fill, h } from "../dom.js";
import { duration } from "../format.js";
import { actions } from "../next/actions.js";
import { decisions, drawRegret, headline, steps } from "../next/answer.js";
import { FIELD_OF, asked, bodyOf, forUrl, questionForm, withDefaults, wrongFields } from "../next/question.js";
import { announce, empty, failed, show, startPage } from "../shell.js";
import { readState, writeState } from "../url.js";

startPage();
const content = byId("content");
const place = h("div", { class: "stack", id: "plan" });
let form;
let asking = null;

await show(content, "cohorts", load, draw);
addEventListener("popstate", () => location.reload());

async function load() {
  const [cohorts, kept] = await Promise.all([listAll("cohorts"), get("recommendations", { limit: 100 })]);
  return { cohorts, kept: kept.data };
}

function draw({ cohorts, kept }) {
  if (!cohorts.length) {
    return void empty(content, "No cohort is stored yet",
      h("p", {}, "A plan stands on the runs of a cohort: ", h("a", { href: "import.html" }, "import run logs"), ", or launch a growth from ", h("a", { href: "index.html" }, "Plan"), ". Six single sizes of different size or tokens make the first guideline with laws."),
      h("p", { class: "soft small" }, "On a laptop, ", h("code", {}, "growthlaw demo"), " makes one in a few minutes."));
  }
  const state = withDefaults(readState());
  state.cohort ??= cohorts.find((one) => one.guideline_id)?.name ?? cohorts[0].name;
  const change = (next) => { writeState(forUrl(next)); ask(next); };
  form = questionForm(state, cohorts, kept, { onChange: change, onAsk: (next) => { writeState(forUrl(next), { push: true }); ask(next, { told: true }); } });
  queueMicrotask(() => ask(state));
  return h("div", { class: "split" }, form.element, place);
}

/** Ask what `state` says; an earlier question that is still being answered is let go. With `told` missing fields are pointed at. */
async function ask(state, { told = false } = {}) {
  asking?.abort();
  const wrong = wrongFields(state);
  if (Object.keys(wrong).length) {
    // A field that was never filled is not wrong yet.
    form.tell(told ? wrong : Object.fromEntries(Object.entries(wrong).filter(([name]) => state[name])));
    place.removeAttribute("aria-busy");
    return void empty(place, "Say what the runs may cost", h("p", {}, "The plan chooses runs for at most that much, of those that could be made at the cohort's sizes and budgets and around them."));
  }
  form.tell({});
  const own = new AbortController();
  asking = own;
  const stop = waiting(state, own);
  try {
    const body = await bodyOf(state, own.signal);
    const answer = await post("plan", body, { signal: own.signal });
    stop();
    drawAnswer(body, answer, state);
  } catch (error) {
    stop();
    if (asking !== own) return;
    if (error.name === "AbortError") return void empty(place, "Stopped", h("p", {}, "Change the question, or plan again."));
    pointAt(error);
    failed(place, error, () => ask(state));
  }
}

/** Tell that planning takes its time, and let it be stopped. Returns what ends the telling. */
function waiting(state, own) {
  const began = performance.now();
  const seconds = h("span", { class: "soft", "aria-hidden": "true" });
  place.setAttribute("aria-busy", "true");
  fill(place, h("div", { class: "card state", role: "status" },
    h("p", {}, h("span", { class: "spin", "aria-hidden": "true" }), ` Weighing runs for ${asked(state)} `, seconds),
    h("p", { class: "small soft" }, "Results are simulated under every draw of the guideline, and each decision is taken again with them."),
    h("button", { type: "button", onclick: () => own.abort() }, "Stop")));
  const tick = setInterval(() => fill(seconds, duration((performance.now() - began) / 1000)), 1000);
  return () => { clearInterval(tick); if (asking === own) place.removeAttribute("aria-busy"); };
}

function drawAnswer(body, answer, state) {
  const regret = h("div");
  fill(place, headline(answer, state), actions(body, answer, state),
    answer.steps.length ? h("section", { class: "card" }, h("h2", {}, "Expected regret against what is spent"), regret) : null,
    answer.steps.length ? steps(answer, state) : nothingToRun(body), decisions(answer));
  if (answer.steps.length) drawRegret(regret, answer, state);
  announce(answer.sentence);
}

function nothingToRun(body) {
  return h("section", { class: "card" }, h("h2", {}, "What this means"),
    h("p", {}, body.decision
      ? "Decide now, as the guideline says today: every run that fits the budget costs more FLOPs than it is expected to save on this target."
      : "No run that fits the budget would change what is decided often enough to matter. More seeds of what stands, or another size, may still say what the laws themselves leave out."));
}

/** Show a problem at its field too. */
function pointAt(error) {
  if (!(error instanceof ApiError)) return;
  const wrong = {};
  for (const one of error.problem.errors ?? []) if (FIELD_OF[one.pointer]) wrong[FIELD_OF[one.pointer]] = one.detail;
  form.tell(wrong);
}
