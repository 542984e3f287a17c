// How a job is told wherever it stands: its state, how far it is, where it leads.

import { h } from "../dom.js";
import { percent } from "../format.js";
import { linkTo } from "../url.js";

export const STATES = ["queued", "running", "paused", "succeeded", "failed", "cancelled"];
export const ENDED = ["succeeded", "failed", "cancelled"];
/** May still change by itself. */
export const MOVING = ["queued", "running"];

const LOOKS = { queued: "", running: "info", paused: "warn", succeeded: "good", failed: "bad", cancelled: "" };
const ROLES = {
  grown: "grown", scratch: "scratch", base_only: "base alone", single: "single run", leg: "decay leg", trunk: "trunk",
  corpus: "corpus preparation", export: "export",
};
const WISHES = { cancel: "is being cancelled", pause: "is being paused" };

export const roleOf = (job) => ROLES[job.role] ?? job.role;
export const jobLink = (job, text = job.name) => h("a", { id: job.id, href: linkTo("job.html", { id: job.id }) }, text);

export function stateTag(job) {
  return h("span", { class: `tag ${LOOKS[job.state]}` }, job.wish ? WISHES[job.wish] : job.state);
}

/** A bar with its share; nothing where a job tells none. */
export function progressBar(job) {
  const fraction = fractionOf(job);
  if (fraction === null) return null;
  return h("div", { class: "row progress" },
    h("progress", { value: fraction, max: 1, "aria-label": `${job.name}: share of its FLOPs done` }), h("span", { class: "small number" }, percent(fraction)));
}

/** Share of its FLOPs done; null where it has none to tell. */
export function fractionOf(job) {
  if (job.progress) return job.progress.fraction;
  return job.kind === "growth" && MOVING.includes(job.state) ? 0 : null;
}

/** Seconds that it ran or has run; null before it starts. */
export function secondsOf(job, now = Date.now()) {
  if (!job.started_at || job.state === "queued") return null;
  return ((job.finished_at ? new Date(job.finished_at) : now) - new Date(job.started_at)) / 1000;
}
