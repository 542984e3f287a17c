// What happened to a job, told with times, the newest first.

import { fill, h } from "../dom.js";
import { clock, time } from "../format.js";

const WORDS = {
  queued: "Queued", running: "Given to a worker", started: "Training began", resumed: "Went on from a checkpoint", epochs: "Reads text again",
  growing: "Grows now", growth: "Grew", checkpoint: "Saved", checkpoint_damaged: "A checkpoint was damaged", paused: "Paused", diverged: "Diverged",
  finished: "Training finished", not_healed: "Did not heal", failed: "Failed", succeeded: "Succeeded", cancelled: "Cancelled",
  cancel_asked: "Asked to cancel", pause_asked: "Asked to pause", taken_up: "The service came back", taken_over: "Another service took over",
  waiting: "Waits", going_on: "Goes on", warning: "Warning",
};
const LOOKS = { failed: "bad", diverged: "bad", warning: "warn", checkpoint_damaged: "warn", not_healed: "warn", succeeded: "good", finished: "good", growth: "info", growing: "info" };

export class Story {
  constructor(element) {
    this.element = element;
    this.entries = [];
    this.waits = false;
  }

  add(entry) {
    this.entries.push(entry);
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => {
      this.waits = false;
      this.#draw();
    });
  }

  #draw() {
    const top = this.element.scrollTop;
    fill(this.element, folded(this.entries).reverse().map(line));
    this.element.scrollTop = top;
  }
}

/** Entries with every row of saved checkpoints as one. */
function folded(entries) {
  const told = [];
  for (const entry of entries) {
    const last = told.at(-1);
    if (entry.event === "checkpoint" && last?.event === "checkpoint") {
      last.number += 1;
      [last.until, last.message] = [entry.time, entry.message];
    } else told.push({ ...entry, number: 1, until: entry.time });
  }
  return told;
}

function line(entry) {
  const word = WORDS[entry.event] ?? entry.event.replaceAll("_", " ");
  const several = entry.number > 1 ? ` ${entry.number} checkpoints, the last:` : "";
  return h("li", {}, h("time", { datetime: entry.until, title: time(entry.until) }, clock(entry.until)),
    h("div", { class: "told" }, h("span", { class: LOOKS[entry.event] ? `tag ${LOOKS[entry.event]}` : "" }, h("strong", {}, word)), several, " ",
      entry.event === "checkpoint" ? h("code", {}, entry.message) : entry.message));
}
