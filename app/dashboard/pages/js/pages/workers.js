// Nodes, their devices and what runs on them; beside them the queue and why it waits.

import { get, listAll } from "../api.js";
import { byId, fill, h } from "../dom.js";
import { ago, bytes, percent, time } from "../format.js";
import { jobLink, progressBar, roleOf } from "../parts/jobs.js";
import { keepAsking, refill } from "../parts/steady.js";
import { empty, failed, loading, startPage } from "../shell.js";

const SECONDS_BETWEEN_LOOKS = 3;
// A launcher looks at its machines every few seconds; a minute of silence is a machine, or a scheduler, that is away.
const SECONDS_OF_SILENCE = 60;
const KINDS = { gpu: "GPU", cpu: "CPU slot" };

startPage();
const [content, queue, summary] = [byId("content"), byId("queue"), byId("summary")];
let isDrawn = false;

async function draw() {
  try {
    const [workers, running, queued] = await Promise.all([listAll("workers"), listAll("jobs", { state: "running" }), listAll("jobs", { state: "queued" })]);
    isDrawn = true;
    content.removeAttribute("aria-busy");
    tellSummary(workers, queued);
    const jobs = new Map([...running, ...queued].map((job) => [job.id, job]));
    if (workers.length) refill(content, workers.map((worker) => card(worker, jobs)));
    else empty(content, "No worker is attached", h("p", {}, "Jobs wait until a machine is there: the service's own, a Ray cluster (--ray-address) or a scheduler (--exec-file)."));
    drawQueue(queued, workers);
    return SECONDS_BETWEEN_LOOKS;
  } catch (error) {
    if (error.status === 0 && isDrawn) {
      fill(summary, "The service cannot be reached; what you see is how it was. Trying again.");
      return SECONDS_BETWEEN_LOOKS;
    }
    failed(content, error, again);
    return null;
  }
}

function tellSummary(workers, queued) {
  const devices = workers.flatMap((worker) => worker.devices);
  const free = devices.filter((device) => !device.job_id).length;
  fill(summary, `${workers.length} ${workers.length === 1 ? "node" : "nodes"}, ${devices.length} ${devices.length === 1 ? "device" : "devices"}, ${free} free; ${queued.length || "no"} ${queued.length === 1 ? "job waits" : "jobs wait"}.`);
}

function card(worker, jobs) {
  const silent = Date.now() - new Date(worker.heartbeat_at) > SECONDS_OF_SILENCE * 1000;
  const used = worker.memory_bytes && worker.memory_free_bytes !== null ? 1 - worker.memory_free_bytes / worker.memory_bytes : null;
  const versions = Object.entries(worker.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  return h("section", { class: "card" },
    h("div", { class: "row between" }, h("h2", {}, worker.name, " ", h("span", { class: "tag" }, worker.engine)),
      h("span", { class: `tag ${silent ? "warn" : "good"}`, title: time(worker.heartbeat_at) }, `${silent ? "last heard of" : "heard of"} ${ago(worker.heartbeat_at)}`)),
    h("dl", { class: "facts" },
      used !== null && fact("Memory", h("meter", { min: 0, max: 1, high: .9, optimum: 0, value: used, "aria-label": `memory of ${worker.name} in use` }), ` ${bytes(worker.memory_free_bytes)} of ${bytes(worker.memory_bytes)} free (${percent(used)} in use)`),
      versions && fact("Versions", versions)),
    h("ul", { class: "slots", "aria-label": `Devices of ${worker.name}` }, worker.devices.map((device) => slot(device, jobs))));
}

const fact = (name, ...value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

function slot(device, jobs) {
  const job = jobs.get(device.job_id);
  const memory = device.memory_bytes && (device.memory_free_bytes === null ? bytes(device.memory_bytes) : `${bytes(device.memory_free_bytes)} of ${bytes(device.memory_bytes)} free`);
  return h("li", { class: device.job_id ? "busy" : null },
    h("div", {}, h("strong", {}, `${KINDS[device.kind]} ${device.index}`), " ", h("span", { class: "soft small" }, device.name)),
    device.job_id ? h("div", {}, jobLink(job ?? { id: device.job_id, name: device.job_id })) : h("div", { class: "soft" }, "free"),
    job && progressBar(job), memory && h("div", { class: "soft small" }, memory));
}

function drawQueue(queued, workers) {
  // The order in which they are claimed: by priority, then by age.
  const inOrder = [...queued].sort((a, b) => b.priority - a.priority || (a.id < b.id ? -1 : 1));
  refill(queue, h("h2", {}, "Queue"),
    inOrder.length
      ? h("ol", { class: "queue" }, inOrder.map((job, place) => h("li", {}, jobLink(job), " ", h("span", { class: "soft small" }, `${roleOf(job)}, priority ${job.priority}`),
        h("p", { class: "soft small" }, why(job, inOrder.slice(0, place), workers)))))
      : h("p", { class: "soft" }, "Nothing waits."));
}

/** Why a queued job waits. A large job is not starved: those behind it that want the same devices wait for it. */
function why(job, before, workers) {
  if (job.reason) return job.reason;
  const ahead = before.findLast((other) => other.engine === job.engine);
  if (ahead) return `behind ${ahead.name}`;
  const devices = workers.filter((worker) => worker.engine === job.engine).flatMap((worker) => worker.devices);
  const free = devices.filter((device) => !device.job_id).length;
  const needed = job.num_processes;
  return `next on ${job.engine}: it needs ${needed} ${needed === 1 ? "device" : "devices"}, ${free} of ${devices.length} ${free === 1 ? "is" : "are"} free`;
}

loading(content, "workers");
fill(queue, h("h2", {}, "Queue"));
const again = keepAsking(draw);
