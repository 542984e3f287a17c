// The front page: a question on the left, its answer, its one-pager and what can be done with it on the right.

import { ApiError, listAll, post } from "../api.js";
import { byId, debounce, fill, h } from "../dom.js";
import { drawAnswer } from "../plan/answer.js";
import { openCopy } from "../plan/copy.js";
import { buildForm } from "../plan/form.js";
import { drawLandscape } from "../plan/landscape.js";
import { openLaunch } from "../plan/launch.js";
import { downloadCsv, drawOnePager } from "../plan/onepager.js";
import { drawCompared, drawSaved } from "../plan/saved.js";
import { assumptionErrors, assumptionsOf, fieldAt, FieldError, keyOf, queryOf, questionOf, stateOf } from "../plan/state.js";
import { announce, empty, failed, loading, startPage } from "../shell.js";
import { readState, writeState } from "../url.js";

// While a question is under way, the next one waits for a pause: a dragged slider does not ask at every pixel.
const ASK_AFTER_MS = 60;

startPage();
const places = Object.fromEntries(["answer", "actions", "one-pager", "landscape", "saved"].map((id) => [id, byId(id)]));
let state = stateOf(readState());
let current = null; // {key, question, answer} of the last question that was answered
let asking = null;

loading(places.answer, "the answer");
const cohorts = await listAll("cohorts").catch(() => []);
const form = buildForm(byId("question"), cohorts, (name, value) => {
  state = { ...state, [name]: value };
  writeState(queryOf(state));
  form.show(state);
  changed();
});
form.show(state);
const landscape = buildLandscape();
addEventListener("popstate", () => { state = stateOf(readState()); form.show(state); changed(); });
await ask();
await saved();

function changed() {
  if (current && current.key === keyOf(state)) {
    settle();
    return void draw();
  }
  if (asking) askSoon();
  else ask();
}

const askSoon = debounce(ask, ASK_AFTER_MS);

/** No question is under way any more: what stands is the answer to the last one. */
function settle() {
  asking?.abort();
  asking = null;
  busy(false);
}

function busy(is) {
  places.answer.setAttribute("aria-busy", String(is));
  for (const place of [places.answer, places["one-pager"]]) place.classList.toggle("busy", is);
}

/** Ask the state's question; an answer that comes after a newer question was asked is dropped. */
async function ask() {
  settle();
  const key = keyOf(state);
  let question;
  try {
    question = questionOf(state);
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    form.tellErrors({ [error.field]: error.message });
    return void unanswered();
  }
  const mine = new AbortController();
  asking = mine;
  busy(true);
  try {
    const answer = await post("recommend", question, { signal: mine.signal });
    current = { key, question, answer };
    draw();
    landscape.draw();
  } catch (error) {
    if (error.name === "AbortError") return;
    const errors = error instanceof ApiError && error.status === 422 ? fieldErrors(error) : null;
    form.tellErrors(errors ?? {});
    unanswered();
    failed(places.answer, error, errors ? null : ask);
  } finally {
    if (asking === mine) settle();
  }
}

function fieldErrors(error) {
  const found = (error.problem.errors ?? []).map((one) => [fieldAt(one.pointer), one.detail]);
  return found.length && found.every(([name]) => name) ? Object.fromEntries(found) : null;
}

/** No answer stands to the question as it is: nothing may look as if it did. */
function unanswered() {
  current = null;
  places.answer.className = "card answer other";
  fill(places.answer, h("div", { class: "state" }, h("h2", {}, "The question is not complete"), h("p", {}, "Mend the field that is marked, and the answer stands here.")));
  fill(places.actions);
  fill(places["one-pager"]);
  landscape.draw();
}

function draw() {
  form.tellErrors(assumptionErrors(state));
  const assumptions = assumptionsOf(state);
  const { answer } = current;
  drawAnswer(places.answer, answer, state, assumptions);
  drawOnePager(places["one-pager"], answer, state, assumptions);
  if (!places.actions.childElementCount) drawActions();
  performance.mark("answer-drawn");
}

function drawActions() {
  const button = (title, onclick, name = null) => h("button", { type: "button", class: name, onclick }, title);
  fill(places.actions,
    button("Copy plan", () => openCopy(current.question), "first"),
    button("Launch", () => openLaunch(current.answer, current.question)),
    button("Save", save),
    button("Export PDF", () => print()),
    button("Export CSV", () => downloadCsv(current.answer, assumptionsOf(state))));
}

/** Put `changes` into the state and the link. */
function remember(changes) {
  state = { ...state, ...changes };
  writeState(queryOf(state));
}

/** Ask the same question once more, to be kept. */
async function save(event) {
  const button = event.currentTarget;
  button.disabled = true;
  try {
    const answer = await post("recommend", { ...current.question, keep: true });
    current = { ...current, answer };
    draw();
    announce(`Saved as ${answer.id}`);
    await saved();
    byId("saved").scrollIntoView({ block: "nearest" });
  } catch (error) {
    failed(places.saved, error, saved);
  } finally {
    button.disabled = false;
  }
}

function saved() {
  const assumptions = () => assumptionsOf(state);
  return drawSaved(places.saved, state, assumptions, (ids) => {
    remember({ compare: ids.join(",") });
    drawCompared(places.saved.lastElementChild, state, assumptions);
  });
}

/** "Show the landscape": open or closed is a part of the link; the charts follow the answer while it is open. */
function buildLandscape() {
  const content = h("div", { id: "charts" });
  const toggle = h("button", { type: "button", class: "first", "aria-controls": "charts", onclick: () => {
    remember({ landscape: state.landscape ? "" : "1" });
    tell();
    draw();
  } });
  let drawing = null;
  const tell = () => {
    fill(toggle, state.landscape ? "Hide the landscape" : "Show the landscape");
    toggle.setAttribute("aria-expanded", String(Boolean(state.landscape)));
    content.hidden = !state.landscape;
  };
  async function draw() {
    drawing?.abort();
    if (!state.landscape) return;
    drawing = new AbortController();
    if (!current) return void empty(content, "No landscape without an answer");
    if (!content.childElementCount) loading(content, "the landscape");
    await drawLandscape(content, current.answer, state, drawing.signal);
  }
  fill(places.landscape, h("div", { class: "row between" }, h("h2", {}, "The landscape behind the answer"), toggle), content);
  tell();
  return { draw };
}
