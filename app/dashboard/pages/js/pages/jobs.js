// The jobs, newest first, those of one request together; what runs moves while it is looked at.

import { get, listAll } from "../api.js";
import { byId, h } from "../dom.js";
import { duration, loss, time } from "../format.js";
import { MOVING, STATES, jobLink, progressBar, roleOf, secondsOf, stateTag } from "../parts/jobs.js";
import { keepAsking, refill } from "../parts/steady.js";
import { empty, failed, loading, startPage } from "../shell.js";
import { linkTo, readState, writeState } from "../url.js";

const A_PAGE = 50;
const SECONDS_WHILE_MOVING = 2;
const SECONDS_AT_REST = 15;
const UNENDED = "queued running paused";
const KINDS = { growth: "growth", corpus: "corpus preparation", export: "export" };

startPage();
const content = byId("content");
let state = readState();
let shown = A_PAGE;
let isDrawn = false;

const choose = (name, label, options) => h("div", {}, h("label", { for: name }, label),
  h("select", { id: name, onchange: (event) => changed(name, event.target.value) },
    options.map(([value, text]) => h("option", { value, selected: (state[name] ?? "") === value }, text))));

function drawFilters(cohorts) {
  const names = [...new Set([...cohorts, state.cohort].filter(Boolean))].sort();
  refill(byId("filters"),
    choose("state", "State", [["", "all"], [UNENDED, "not ended"], ...STATES.map((one) => [one, one])]),
    choose("cohort", "Cohort", [["", "all"], ...names.map((name) => [name, name])]),
    choose("kind", "Kind", [["", "all"], ...Object.entries(KINDS)]));
}

function changed(name, value) {
  state = { ...state, [name]: value };
  writeState(state, { push: true });
  shown = A_PAGE;
  isDrawn = false;
  loading(content, "jobs");
  again();
}

window.addEventListener("popstate", () => {
  state = readState();
  for (const name of ["state", "cohort", "kind"]) byId(name).value = state[name] ?? "";
  again();
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());

async function draw() {
  const asked = state;
  try {
    const query = { limit: Math.min(shown, 1000), state: asked.state?.split(" "), cohort: asked.cohort, kind: asked.kind, group_id: asked.group_id };
    const page = await get("jobs", query);
    if (asked !== state) return 0;
    isDrawn = true;
    content.removeAttribute("aria-busy");
    if (!page.data.length) tellNone();
    else refill(content, listing(page.data), page.has_more && h("p", {}, h("button", { id: "older", type: "button", onclick: () => { shown += A_PAGE; again(); } }, "Show older jobs")));
    return page.data.some((job) => MOVING.includes(job.state)) ? SECONDS_WHILE_MOVING : SECONDS_AT_REST;
  } catch (error) {
    if (error.status === 0 && isDrawn) {
      if (!document.getElementById("away")) content.prepend(h("p", { id: "away", class: "note warn", role: "status" }, "The service cannot be reached; what you see is how it was. Trying again."));
      return SECONDS_WHILE_MOVING;
    }
    failed(content, error, again);
    return null;
  }
}

function tellNone() {
  if (Object.values(state).some(Boolean)) {
    return void empty(content, "No job is like that", h("p", {}, "Choose other filters, or ", h("a", { href: "jobs.html" }, "see all jobs"), "."));
  }
  empty(content, "No job yet", h("p", {}, "A ", h("a", { href: "index.html" }, "plan"), " can be launched from its own page; each run of it is a job here."));
}

function listing(jobs) {
  const groups = [];
  for (const job of jobs) {
    const last = groups.at(-1);
    if (job.group_id && last?.[0].group_id === job.group_id) last.push(job);
    else groups.push([job]);
  }
  const titles = ["Job", "State", "Progress", "Loss", "Cohort", "Priority", "Made", "Took"];
  const head = h("tr", {}, titles.map((title) => h("th", { scope: "col", class: ["Loss", "Priority", "Took"].includes(title) ? "number" : null }, title)));
  return h("div", { class: "table-wrap listing", tabindex: 0, role: "region", "aria-label": "Jobs" },
    h("table", {}, h("thead", {}, head), groups.map((group) => h("tbody", { class: group.length > 1 ? "group" : null }, group.length > 1 && heading(group, titles.length), [...group].reverse().map(row)))));
}

/** "pilot: 3 runs that are compared at equal FLOPs": what the names of the jobs share. */
function heading(group, width) {
  const names = group.map((job) => job.name);
  let shared = names[0];
  while (!names.every((name) => name.startsWith(shared))) shared = shared.slice(0, -1);
  const name = shared.replace(/-$/, "") || "one request";
  const ended = group.filter((job) => !MOVING.includes(job.state) && job.state !== "paused").length;
  return h("tr", {}, h("th", { colspan: width, scope: "rowgroup" }, name, h("span", { class: "soft small" }, ` \u2013 ${group.length} runs of one request, ${ended} ended`)));
}

function row(job) {
  const { progress } = job;
  const value = progress?.validation_loss_nats ?? progress?.train_loss_nats;
  return h("tr", {},
    h("td", {}, jobLink(job), " ", h("span", { class: "soft small" }, roleOf(job))),
    h("td", {}, stateTag(job), job.state === "queued" && job.reason ? h("div", { class: "soft small" }, job.reason) : null),
    h("td", {}, progressBar(job) ?? h("span", { class: "soft" }, "\u2013")),
    h("td", { class: "number" }, loss(value)),
    h("td", {}, job.cohort ? h("a", { href: linkTo("guidelines.html", { cohort: job.cohort }) }, job.cohort) : "\u2013"),
    h("td", { class: "number" }, String(job.priority)),
    h("td", { class: "small" }, time(job.created_at)),
    h("td", { class: "number" }, duration(secondsOf(job))));
}

loading(content, "jobs");
drawFilters([]);
const again = keepAsking(draw);
drawFilters(await listAll("cohorts").then((cohorts) => cohorts.map((one) => one.name)).catch(() => []));
