// One job, live: its story and its curve come from the event stream, everything else is asked again when the story moves on.

import { ApiError, follow, get, listAll } from "../api.js";
import { byId, debounce, fill, h, table } from "../dom.js";
import { flops, interval, loss, tokens } from "../format.js";
import { Actions } from "../parts/job-actions.js";
import { AXES, Curve, PARTS } from "../parts/job-curve.js";
import { decisionPoints, phasesOf } from "../parts/job-design.js";
import { drawCheckpoints, drawLog } from "../parts/job-files.js";
import { facts, phaseBar, tiles } from "../parts/job-head.js";
import { Story } from "../parts/job-story.js";
import { ENDED, jobLink, progressBar, roleOf, stateTag } from "../parts/jobs.js";
import { keepAsking, refill } from "../parts/steady.js";
import { empty, failed, show, startPage } from "../shell.js";
import { readState, writeState } from "../url.js";

const CURVE_METRICS = ["train_loss", "validation_loss"];
const POINTS_A_PAGE = 10_000;
const SECONDS_WHILE_MOVING = 3;
const SECONDS_AT_REST = 30;
const LIVE = { open: ["good", "live"], lost: ["warn", "reconnecting"], ended: ["", "ended"], wait: ["", "loading"] };

startPage();
const content = byId("content");
const { id } = readState();
const path = `jobs/${encodeURIComponent(id)}`;
const page = { job: null, run: null, kept: null, prediction: null, points: [], why: "", curve: null, position: null, following: false };

async function load() {
  const job = await get(path);
  const [run, kept, prediction] = await Promise.all([
    job.run_id ? orNull(get(`runs/${encodeURIComponent(job.run_id)}`), 404, 410) : null,
    job.recommendation_id ? orNull(get(`recommendations/${encodeURIComponent(job.recommendation_id)}`), 404) : null,
    job.kind === "growth" ? get(`${path}/prediction`) : null,
  ]);
  Object.assign(page, { job, run, kept, prediction });
  if (run) Object.assign(page, decisionPoints(job, run, kept));
}

/** What a promise gives, null where the service answers that it is not there. */
const orNull = (asked, ...statuses) => asked.catch((error) => {
  if (error instanceof ApiError && statuses.includes(error.status)) return null;
  throw error;
});

const part = (name, title, ...children) => h("section", { class: "card", "aria-labelledby": `${name}-title` }, h("h2", { id: `${name}-title` }, title), children);

function draw() {
  const { job, run } = page;
  document.title = `${job.name} \u00b7 Growthlaw`;
  fill(content, h("div", { class: "stack" },
    h("div", { class: "row between" },
      h("h1", {}, job.name, " ", h("span", { id: "state", role: "status" })), h("span", { id: "live", class: "tag", role: "status" })),
    h("div", { id: "facts" }), h("div", { id: "actions", class: "stack no-print" }), h("div", { id: "trouble" }),
    h("div", { id: "tiles" }), h("div", { id: "phases" }),
    run && part("curve", "Loss", h("div", { id: "view", class: "row between no-print" }), h("div", { id: "curve" }), h("div", { id: "points" })),
    h("div", { class: "columns" },
      part("story", "What happened", h("p", { class: "soft small" }, "The newest first."), h("ol", { id: "story", class: "story", tabindex: 0, "aria-label": "Events" })),
      part("log", "End of its log", h("pre", { id: "log", class: "log", tabindex: 0, "aria-label": "Log" }))),
    job.kind === "growth" && part("checkpoints", "Checkpoints", h("div", { id: "checkpoints" })),
    h("div", { id: "siblings" })));
  page.actions = new Actions(byId("actions"), (changed) => { page.job = changed; drawHead(); again(); });
  page.story = new Story(byId("story"));
  if (run) {
    page.curve = new Curve(byId("curve"), run, () => ({ prediction: run.final_loss === null ? page.prediction?.final_loss : null, points: page.points }));
    drawView();
    drawPoints();
  }
  drawHead();
  const again = keepAsking(refresh);
  page.again = again;
  start();
}

function drawHead() {
  const { job, run, curve } = page;
  fill(byId("state"), stateTag(job));
  refill(byId("facts"), facts(job, run, page.progress ?? job.progress));
  page.actions.draw(job);
  refill(byId("trouble"), trouble(job));
  if (job.kind === "growth") fill(byId("tiles"), tiles(job, run, page.progress ?? job.progress, { pace: curve?.pace, prediction: page.prediction }));
  if (run) fill(byId("phases"), phaseBar(run, page.progress ?? job.progress, page.points, curve.view.x));
}

function trouble(job) {
  if (job.state === "failed") return h("div", { class: "note bad", role: "alert" }, h("h3", {}, "It failed"), h("p", {}, job.reason));
  if (job.state === "queued" && job.reason) return h("div", { class: "note" }, h("p", {}, job.reason));
  return job.state === "paused" ? h("div", { class: "note warn" }, h("p", {}, job.reason || "It is paused; resume it to go on from its last checkpoint.")) : null;
}

function drawView() {
  const { curve, run } = page;
  const wanted = readState();
  const view = { x: wanted.x in AXES ? wanted.x : "tokens", part: wanted.part in PARTS ? wanted.part : "all" };
  const choose = (name, label, options) => h("div", { class: "segments", role: "group", "aria-label": label }, Object.entries(options).map(([value, text]) =>
    h("button", { id: `${name}-${value}`, type: "button", "aria-pressed": String(view[name] === value), onclick: () => {
      writeState({ ...readState(), [name]: value });
      drawView();
    } }, text)));
  const parts = run.base_params === null ? { all: PARTS.all, tail: PARTS.tail } : PARTS;
  refill(byId("view"), choose("part", "Part of the run", parts), choose("x", "Horizontal axis", AXES));
  curve.show(view);
  if (page.job) fill(byId("phases"), phaseBar(run, page.progress ?? page.job.progress, page.points, view.x));
}

function drawPoints() {
  if (!page.points.length) return void fill(byId("points"), page.why && h("p", { class: "soft small" }, page.why));
  fill(byId("points"), h("h3", {}, "Decision points"),
    table([
      { title: "Tokens after growth", number: true, cell: (one) => tokens(one.tokens_after_growth) },
      { title: "FLOPs of the run", number: true, cell: (one) => flops(one.flops) },
      { title: "Expected loss", number: true, cell: (one) => `${loss(one.expected_loss_nats)} (80%: ${interval(one.expected_band, (value) => value.toFixed(3))})` },
      { title: "Stop above", number: true, cell: (one) => loss(one.stop_above_nats) },
      { title: "Else", cell: (one) => one.fallback },
    ], page.points, { caption: "Losses of a run whose schedule ends there: hold a decay leg's end against them, not a curve that has still to decay." }));
}

/** Everything but story and points: asked again and again, and at once when the story moves. */
async function refresh() {
  try {
    page.job = await get(path);
    page.progress = null;
    drawHead();
    await Promise.all([drawLog(byId("log"), page.job), page.job.kind === "growth" && drawCheckpoints(byId("checkpoints"), page.job), drawSiblings()]);
    if (ENDED.includes(page.job.state) && page.job.run_id && page.run) {
      page.run = (await orNull(get(`runs/${encodeURIComponent(page.job.run_id)}`), 404, 410)) ?? page.run;
      drawHead();
    }
    start();
    return ENDED.includes(page.job.state) ? SECONDS_AT_REST : SECONDS_WHILE_MOVING;
  } catch (error) {
    if (error.status === 0 || error.status >= 500) return SECONDS_WHILE_MOVING;
    failed(content, error, () => location.reload());
    return null;
  }
}

async function drawSiblings() {
  const { job } = page;
  const siblings = job.group_id ? await listAll("jobs", { group_id: job.group_id }) : [];
  if (siblings.length < 2) return;
  refill(byId("siblings"), part("siblings", "Runs of the same request", h("p", { class: "soft small" }, "Compared at equal FLOPs; losses are the last of validation."),
    table([
      { title: "Job", cell: (one) => (one.id === job.id ? h("strong", {}, `${one.name} (this one)`) : jobLink(one)) }, { title: "Role", cell: roleOf },
      { title: "State", cell: stateTag }, { title: "Progress", cell: (one) => progressBar(one) ?? "\u2013" },
      { title: "Loss", number: true, cell: (one) => loss(one.progress?.validation_loss_nats) },
    ], [...siblings].reverse())));
}

/** Follow the job from where it was left; nothing where it is followed already, or has ended and was followed to its end. */
async function start() {
  if (page.following || (page.endedAt === page.job.finished_at && ENDED.includes(page.job.state))) return;
  page.following = true;
  try {
    if (page.position === null) await loadPast();
    await follow(`${path}/events`, { onEvent, onState: tellLive, after: page.position });
    tellLive("ended");
  } catch (error) {
    failed(byId("trouble"), error, () => location.reload());
  } finally {
    page.following = false;
  }
}

/** What is stored of the curve, in large pages and without the other metrics; the stream goes on behind it. */
async function loadPast() {
  tellLive("wait");
  let last = null;
  for (const metric of page.run ? CURVE_METRICS : []) {
    let after = null;
    do {
      const points = await get(`runs/${encodeURIComponent(page.job.run_id)}/points`, { metric, limit: POINTS_A_PAGE, after });
      points.data.forEach((point) => page.curve.add(point));
      after = points.has_more ? points.next : null;
    } while (after);
    // Points are stored in their order: what the first metric ends with, no other metric lacks anything before.
    last ??= page.curve.train.lastSeq;
  }
  page.position = `0-${last ?? -1}`;
}

const redraw = debounce(() => drawHead(), 100);
const moved = debounce(() => page.again(), 200);

function onEvent({ event, data, id: position }) {
  page.position = position ?? page.position;
  if (event === "story") {
    page.story.add(data);
    moved();
  } else if (event === "point") {
    page.curve?.add(data);
    noteProgress(data);
  } else if (event === "end") {
    page.endedAt = data.finished_at;
    moved();
  }
}

/** The numbers of the head move with the stream; the service's own are taken where it is asked again. */
function noteProgress(point) {
  const { run } = page;
  if (!run) return;
  page.progress ??= page.job.progress ?? { total_flops: phasesOf(run).reduce((sum, phase) => sum + phase.flops, 0), mfu: null, validation_loss_nats: null, tokens_per_second: null };
  const { progress } = page;
  if (point.metric === "train_loss") {
    page.progress = { ...progress, phase: point.phase, tokens: point.tokens, compute_flops: point.compute_flops, fraction: Math.min(1, point.compute_flops / progress.total_flops), train_loss_nats: point.value };
  } else if (point.metric === "validation_loss") page.progress = { ...progress, validation_loss_nats: point.value };
  else if (point.metric === "tokens_per_second") page.progress = { ...progress, tokens_per_second: point.value };
  else if (point.metric === "mfu") page.progress = { ...progress, mfu: point.value };
  redraw();
}

function tellLive(state) {
  const live = document.getElementById("live");
  if (!live) return;
  live.className = `tag ${LIVE[state][0]}`;
  fill(live, LIVE[state][1]);
}

if (!id) empty(content, "Which job?", h("p", {}, "Choose one of ", h("a", { href: "jobs.html" }, "the jobs"), "."));
else await show(content, "the job", load, draw);
