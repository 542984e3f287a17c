// What a job left on disk: the end of its log, its checkpoints, and sending one of them to a place that the service allows.

import { get, listAll, post } from "../api.js";
import { fill, h, table } from "../dom.js";
import { bytes, clock, tokens } from "../format.js";
import { jobLink } from "./jobs.js";

const LOG_BYTES = 16_384;
const KEPT = { recent: "the last two", run: "until the run has its result", always: "for decay legs" };

/** Draw the end of the log into `element` (a pre); the reader's place is kept unless it is the end. */
export async function drawLog(element, job) {
  const { text } = await get(`jobs/${encodeURIComponent(job.id)}/logs`, { max_bytes: LOG_BYTES });
  const atEnd = element.scrollTop + element.clientHeight >= element.scrollHeight - 4;
  element.textContent = text || "It has printed nothing yet.";
  if (atEnd) element.scrollTop = element.scrollHeight;
}

/** Draw the checkpoints into `element`, with a way to export where there is something to. */
export async function drawCheckpoints(element, job) {
  const found = await listAll(`jobs/${encodeURIComponent(job.id)}/checkpoints`);
  const isFinished = job.state === "succeeded";
  if (!found.length && !isFinished) return void fill(element, h("p", { class: "soft" }, "None yet."));
  const list = found.length
    ? table([
      { title: "Checkpoint", cell: (one) => [h("code", {}, one.name), one.problem ? h("div", { class: "small tag bad" }, one.problem) : null] },
      { title: "Tokens of the run", number: true, cell: (one) => tokens(one.run_tokens) },
      { title: "Size", number: true, cell: (one) => bytes(one.num_bytes) },
      { title: "Saved", cell: (one) => clock(one.created_at) },
      { title: "Kept", cell: (one) => KEPT[one.keep] ?? one.keep ?? "\u2013" },
    ], [...found].reverse(), { caption: "Newest first" })
    : h("p", { class: "soft" }, "A finished run drops its checkpoints; its final weights, and its base's, stay.");
  fill(element, list, h("p", { class: "no-print" }, h("button", { id: "export", type: "button", onclick: () => askForExport(job, found) }, "Export weights \u2026")));
}

function askForExport(job, found) {
  const sources = [
    ...(job.state === "succeeded" ? [["final", "the trained model"]] : []), ...(job.role === "grown" ? [["base", "the base as it was grown"]] : []),
    ...found.filter((one) => !one.problem).map((one) => [one.name, `checkpoint ${one.name}`]).reverse(),
  ];
  const url = h("input", { id: "export-url", required: true, placeholder: "s3://bucket/models/pilot", spellcheck: "false", "aria-describedby": "export-wrong" });
  const source = h("select", { id: "export-source" }, sources.map(([value, text]) => h("option", { value }, text)));
  const wrong = h("p", { id: "export-wrong", class: "wrong", role: "alert" });
  const send = h("button", { class: "first" }, "Export");
  const form = h("form", { class: "stack" }, h("h2", { id: "export-title" }, `Export ${job.name}`),
    h("div", { class: "field" }, h("label", { for: "export-source" }, "What"), source),
    h("div", { class: "field" }, h("label", { for: "export-url" }, "Where to"), url, h("p", { class: "hint" }, "A folder where nothing is yet, below one that the service's owner allows (--export-to)."), wrong),
    h("div", { class: "row" }, send, h("button", { type: "button", onclick: () => dialog.close() }, "Close")));
  const dialog = h("dialog", { "aria-labelledby": "export-title" }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    fill(wrong);
    try {
      const started = await post(`jobs/${encodeURIComponent(job.id)}/export`, { url: url.value.trim(), source: source.value });
      fill(form, h("h2", { id: "export-title" }, "The export has started"), h("p", {}, "It is a job of its own: ", jobLink(started, "see how it goes"), "."),
        h("div", { class: "row" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close")));
    } catch (error) {
      url.setAttribute("aria-invalid", "true");
      fill(wrong, error.message);
      send.disabled = false;
    }
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
