// What can be asked of a job: pause, resume, cancel, retry, each where its state allows it, in the service's own words where not.

import { post } from "../api.js";
import { fill, h } from "../dom.js";
import { announce } from "../shell.js";
import { confirmed } from "./confirm.js";

const ASK = {
  pause: { text: "Pause", states: ["queued", "running"], done: "It is asked to pause" },
  resume: { text: "Resume", states: ["paused"], done: "It goes on" },
  retry: { text: "Retry", states: ["failed", "cancelled"], done: "It is tried again" },
  cancel: { text: "Cancel", states: ["queued", "running", "paused"], done: "It is asked to stop", class: "danger" },
};

export class Actions {
  /** `onChange(job)` is called with the job as the service told it after what was asked. */
  constructor(element, onChange) {
    this.onChange = onChange;
    this.buttons = h("div", { class: "row", role: "group", "aria-label": "What can be asked of the job" });
    this.told = h("div", {});
    fill(element, this.buttons, this.told);
    this.drawn = "";
  }

  draw(job) {
    this.job = job;
    const key = JSON.stringify([job.state, job.wish, job.cause]);
    if (key === this.drawn) return;
    this.drawn = key;
    const focused = this.buttons.contains(document.activeElement) ? document.activeElement.id : "";
    fill(this.buttons, Object.entries(ASK).map(([wish, ask]) => {
      const why = whyNot(job, wish, ask);
      return h("button", { id: `ask-${wish}`, type: "button", class: ask.class, disabled: why !== null, title: why, onclick: () => this.#ask(wish, ask) }, ask.text);
    }));
    if (focused) (document.getElementById(focused).disabled ? this.buttons.querySelector("button:enabled") : document.getElementById(focused))?.focus();
  }

  async #ask(wish, ask) {
    if (wish === "cancel" && !(await confirmed(question(this.job)))) return;
    fill(this.told);
    for (const button of this.buttons.children) button.disabled = true;
    try {
      const job = await post(`jobs/${encodeURIComponent(this.job.id)}/${wish}`);
      announce(ask.done);
      this.onChange(job);
    } catch (error) {
      fill(this.told, h("div", { class: "note bad", role: "alert" }, h("p", {}, error.message)));
    }
    this.drawn = "";
    this.draw(this.job);
  }
}

function whyNot(job, wish, ask) {
  if (job.wish === "cancel" || (job.wish === "pause" && wish === "pause")) return `It is being ${job.wish === "cancel" ? "cancelled" : "paused"}`;
  if (!ask.states.includes(job.state)) return `A ${job.state} job cannot be asked to ${wish}`;
  if (wish === "retry" && job.cause === "diverged") return "It diverged and has its result; start another run with a lower rate or another seed";
  return null;
}

function question(job) {
  const what = job.state === "running" ? "It finishes its step, saves and stops." : "It will not run.";
  const stays = job.kind === "growth" ? " Its run stays in the table, marked stopped, and is no evidence of a finished one." : "";
  return { title: `Cancel ${job.name}?`, what: h("p", {}, `${what}${stays} It can be tried again later, from its last checkpoint.`), label: "Cancel the job", danger: true, back: "Keep it", act: async () => true };
}
