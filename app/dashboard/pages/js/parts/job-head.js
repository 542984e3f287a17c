// The head of a job's page: what it is, how it stands in numbers, and its phases as a bar.

import { h } from "../dom.js";
import { bytes, clock, count, duration, factor, flops, interval, loss, percent, time } from "../format.js";
import { linkTo } from "../url.js";
import { phasesOf, runTokens } from "./job-design.js";
import { ENDED, roleOf, secondsOf } from "./jobs.js";

/** What it is and where it belongs, as names and values. */
export function facts(job, run, progress) {
  const list = [
    ["Kind", job.kind === "growth" ? roleOf(job) : job.kind],
    job.cohort && ["Cohort", h("a", { href: linkTo("guidelines.html", { cohort: job.cohort }) }, job.cohort)],
    job.run_id && ["Run", run ? h("a", { href: linkTo("run.html", { id: job.run_id }) }, run.name) : "removed"],
    job.group_id && ["Request", h("a", { href: linkTo("jobs.html", { group_id: job.group_id }) }, "its jobs")],
    ["Engine", `${job.engine}, ${job.num_processes} ${job.num_processes === 1 ? "process" : "processes"}${job.num_nodes > 1 ? ` on ${job.num_nodes} nodes` : ""}`],
    ["Priority", String(job.priority)],
    ["Made", time(job.created_at)],
    job.started_at && [job.num_attempts > 1 ? `Started (attempt ${job.num_attempts})` : "Started", clock(job.started_at)],
    job.finished_at && ["Ended", `${clock(job.finished_at)}, after ${duration(secondsOf(job))}`],
    progress?.peak_memory_bytes && ["Memory", `${bytes(progress.peak_memory_bytes)} a process at most`],
    ["Launched by", job.owner === "local" ? "this machine" : h("code", {}, job.owner)],
  ];
  return h("dl", { class: "facts small" }, list.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

const tile = (name, value, note) => h("div", {}, h("dt", {}, name), h("dd", { class: "figure" }, value), note && h("dd", { class: "soft small" }, note));

/** The numbers that are looked at: where it stands, how fast it goes, when it is done and where it ends. */
export function tiles(job, run, progress, { pace, prediction }) {
  const isOver = ENDED.includes(job.state);
  const done = progress?.fraction ?? 0;
  return h("dl", { class: "tiles" },
    tile("Done", percent(done, 1), progress && `${flops(progress.compute_flops)} of ${flops(progress.total_flops)}`),
    tile("Validation loss", loss(progress?.validation_loss_nats), progress && `training ${loss(progress.train_loss_nats)}`),
    finalTile(run, prediction),
    tile("Speed", progress?.tokens_per_second ? `${count(progress.tokens_per_second)} tokens/s` : "\u2013", progress && `${progress.phase === "single" ? "" : `${progress.phase} phase, `}last line`),
    tile("MFU", percent(progress?.mfu, 1), progress && (progress.mfu === null ? "this device's peak is not known" : "of the dense bf16 peak")),
    isOver ? tile("Took", duration(secondsOf(job)), job.num_attempts > 1 ? `its last of ${job.num_attempts} attempts` : "") : leftTile(job, progress, pace));
}

function leftTile(job, progress, pace) {
  const left = job.state === "running" && progress ? pace?.timeFor(progress.total_flops - progress.compute_flops) : null;
  if (!left) return tile("Time left", "\u2013", job.state === "running" ? "after a few lines" : `it is ${job.state}`);
  return tile("Time left", `about ${duration(left.seconds)}`, left.range ? `${interval(left.range, duration)} at the pace of its last ${left.numLines} lines` : `at the pace of its last ${left.numLines} lines`);
}

function finalTile(run, prediction) {
  const band = prediction?.final_loss;
  const said = band && `${loss(band.nats)}, 80% of runs ${band.low_nats.toFixed(3)} to ${band.high_nats.toFixed(3)}; `;
  const source = band && h("a", { href: linkTo("guideline.html", { id: prediction.guideline_id }) }, `version ${prediction.guideline_version}`);
  if (run?.final_loss !== null && run?.final_loss !== undefined) {
    return tile(run.is_final ? "Final loss" : "Last loss", loss(run.final_loss), band ? ["predicted ", said, source] : prediction?.reason);
  }
  if (!band) return tile("Predicted final loss", "\u2013", prediction?.reason);
  return tile("Predicted final loss", loss(band.nats), [`80% of runs: ${band.low_nats.toFixed(3)} to ${band.high_nats.toFixed(3)} nats; `, source, `, fitted ${prediction.made === "before the run" ? "before the run" : "since it began"}`]);
}

/** base | growth | grown, each as wide as its share of the run on that axis, with where the run stands and where to look. */
export function phaseBar(run, progress, points, axis) {
  const phases = phasesOf(run);
  const total = phases.reduce((sum, phase) => sum + phase[axis], 0);
  const now = progress ? (axis === "flops" ? progress.compute_flops : runTokens(run, progress)) : 0;
  const share = (value) => `${Math.min(100, (100 * value) / total)}%`;
  let before = 0;
  const parts = phases.map((phase) => {
    const done = Math.max(0, Math.min(1, (now - before) / phase[axis]));
    before += phase[axis];
    const name = phase.name === "single" ? "training" : phase.name;
    return h("div", { class: "phase", style: `width:${share(phase[axis])}`, title: `${name}: ${count(phase.tokens)} tokens, ${flops(phase.flops)}` },
      h("div", { class: "done", style: `width:${100 * done}%` }), h("span", {}, phase.layers ? `${name}, ${phase.layers} layers` : name));
  });
  const marks = points.map((point, place) => h("div", { class: "mark", style: `left:${share(point[axis])}`, title: `decision point ${place + 1}` }));
  const standing = progress && now < total ? h("div", { class: "now", style: `left:${share(now)}` }) : null;
  return h("div", {}, h("div", { class: "phases", role: "img", "aria-label": sentence(run, phases, progress, points) }, parts, marks, standing),
    h("p", { class: "soft small wide" }, sentence(run, phases, progress, points)));
}

function sentence(run, phases, progress, points) {
  const last = phases.at(-1);
  const where = progress ? `It stands in the ${progress.phase === "single" ? "only" : progress.phase} phase after ${count(progress.tokens)} of its tokens.` : "It has not begun.";
  const look = points.length ? ` ${points.length} decision ${points.length === 1 ? "point" : "points"}.` : "";
  if (phases.length === 1) return `${count(last.tokens)} tokens, nothing grows. ${where}`;
  return `Base for ${count(phases[0].tokens)} tokens, growth ${factor(run.growth_factor)}, grown for ${count(last.tokens)} tokens. ${where}${look}`;
}
