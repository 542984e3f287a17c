// What can be done with a plan: copied as a command, Python or curl, its specs saved, its runs queued, each once.

import { ApiError, address, post } from "../api.js";
import { download, fill, h } from "../dom.js";
import { storedKey } from "../keys.js";
import { announce } from "../shell.js";
import { linkTo } from "../url.js";
import { spending, told } from "./answer.js";

const ROOT = () => address("").href.replace(/\/$/, "");

/** The row of buttons. `body` is what was asked, `answer` what came. */
export function actions(body, answer, state) {
  const runs = answer.steps.flatMap((step) => step.runs);
  const ready = runs.length > 0 && runs.every((run) => run.job);
  const why = runs.length && !ready
    ? h("p", { class: "small soft" }, "No run of these sizes was trained by this service, so it has no recipe to start them with. Train one size here first, or make the runs with your own trainer by the table below.") : null;
  return h("section", { class: "card no-print", "aria-label": "What to do with it" },
    h("div", { class: "row" },
      h("button", { type: "button", class: "first", onclick: () => copyDialog(body, state) }, "Copy"),
      h("button", { type: "button", disabled: !ready, onclick: () => saveSpecs(runs) }, "Download specs"),
      h("button", { type: "button", disabled: !ready, onclick: () => queueDialog(answer, runs, state) }, "Queue these runs")),
    why);
}

function saveSpecs(runs) {
  for (const [place, run] of runs.entries()) {
    download(`${String(place + 1).padStart(2, "0")}-${run.job.name}.json`, `${JSON.stringify(run.job, null, 1)}\n`, "application/json");
  }
  announce(`${runs.length} specs saved; growthlaw sweep run takes their folder`);
}

const quoted = (value) => `'${value.replaceAll("'", "'\\''")}'`;

/** The question as a command, as Python and as curl. */
export function copies(body, state) {
  const { decision, ...rest } = body;
  const json = JSON.stringify(body);
  const cli = [`export GROWTHLAW_URL=${ROOT()}`];
  if (decision && state.for !== "kept") cli.push(`echo ${quoted(JSON.stringify(decision))} > question.json`);
  const about = decision ? ` --decision ${state.for === "kept" ? state.rec : "question.json"}` : "";
  cli.push(`growthlaw plan next --cohort ${rest.cohort} --flops-budget ${rest.flops_budget.toExponential().replace("e+", "e")} --max-steps ${rest.max_steps}${about} --out plan/`);
  cli.push(`growthlaw sweep run plan/ --url ${ROOT()}`);
  const python = [
    "from app.client import Growthlaw", "", `client = Growthlaw(${literal(ROOT())})`, `plan = client.plan(**${literal(body)})`, 'print(plan["sentence"])',
    'for step in plan["steps"]:', '    for run in step["runs"]:', '        client.train(run["job"], idempotency_key=run["key"])',
  ];
  const key = storedKey() ? ' -H "Authorization: Bearer $GROWTHLAW_API_KEY"' : "";
  return {
    CLI: cli.join("\n"), Python: python.join("\n"),
    curl: `curl -s ${ROOT()}/plan${key} -H 'Content-Type: application/json' -d ${quoted(json)}`,
  };
}

/** A JSON value as Python writes it. */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}

function copyDialog(body, state) {
  const all = copies(body, state);
  const shown = h("pre", { class: "copy-body", id: "copy-body", tabindex: 0 });
  const done = h("span", { class: "small soft", role: "status" });
  const tabs = Object.keys(all).map((name) => h("button", { type: "button", role: "tab", "aria-controls": "copy-body", onclick: () => choose(name) }, name));
  let chosen;
  function choose(name) {
    chosen = name;
    fill(shown, all[name]);
    fill(done);
    for (const tab of tabs) tab.setAttribute("aria-selected", String(tab.textContent === name));
  }
  const copy = h("button", { type: "button", class: "first", onclick: async () => {
    const copied = await navigator.clipboard?.writeText(all[chosen]).then(() => true, () => false);
    if (!copied) getSelection().selectAllChildren(shown);
    fill(done, copied ? "Copied." : "Selected: press Ctrl+C.");
  } }, "Copy to the clipboard");
  open("Copy the plan", h("div", { class: "row tabs", role: "tablist", "aria-label": "As" }, tabs), shown, h("div", { class: "row" }, copy, done));
  choose("CLI");
}

function queueDialog(answer, runs, state) {
  const started = h("ol", { class: "started", "aria-live": "polite" });
  const trouble = h("div");
  const start = h("button", { type: "button", class: "first", onclick: async () => {
    start.disabled = true;
    fill(trouble);
    fill(started);
    try {
      for (const run of runs) {
        const job = await post("jobs", run.job, { headers: { "Idempotency-Key": run.key } });
        started.append(h("li", {}, h("a", { href: linkTo("job.html", { id: job.id }) }, job.name), ` ${told(run)}: ${job.state}`));
      }
      fill(start, "Queued");
      fill(trouble, h("p", {}, h("a", { class: "button", href: "jobs.html" }, "Watch the jobs")));
    } catch (error) {
      if (!(error instanceof ApiError)) console.error(error);
      fill(trouble, h("div", { class: "note bad", role: "alert" }, h("p", {}, `${error.message}. What stands above is queued; trying again starts nothing twice.`)));
      start.disabled = false;
    }
  } }, `Queue ${runs.length} run${runs.length === 1 ? "" : "s"}`);
  open("Queue these runs", h("p", {}, `They cost ${spending(state, answer.cost_flops)} and start as slots are free, in this order. Each starts once, however often this plan is queued.`),
    h("ul", { class: "small" }, runs.map((run) => h("li", {}, told(run), h("span", { class: "soft" }, ` ${spending(state, run.compute_flops)}`)))), started, trouble, h("div", { class: "row" }, start));
}

function open(title, ...children) {
  const dialog = h("dialog", { class: "wide", "aria-labelledby": "dialog-title" },
    h("div", { class: "row between" }, h("h2", { id: "dialog-title" }, title),
      h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close")), children);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
