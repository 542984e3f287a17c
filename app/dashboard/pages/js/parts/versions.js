// What both pages of guidelines tell: why a version answers or not, and putting another one in charge.

import { post } from "../api.js";
import { h } from "../dom.js";
import { confirmed } from "./confirm.js";

// The outcome of GET /guidelines -> its word and colour.
const OUTCOMES = {
  first: ["first", "info"], newest: ["promoted: newest", "good"], promoted: ["promoted", "good"], waits: ["waits for evidence", "warn"],
  rejected: ["rejected", "bad"], replaces_withdrawn: ["replaces one whose runs are gone", "good"], pinned: ["kept back: another is pinned", "warn"],
};

// The predictors of standings, as people call them, in the order they are told, with a colour of base.css.
export const PREDICTORS = [
  ["active", "guideline that answered", "series-1"], ["candidate", "newest refit", "series-3"], ["never", "never grow", "series-5"], ["gstack", "published rule", "series-2"],
];

export function outcome(version) {
  const [word, kind] = OUTCOMES[version.outcome] ?? [version.outcome, ""];
  return h("span", { class: `tag ${kind}` }, word);
}

/** Tags that say whether a version answers now. */
export const standing = (version) => [version.is_active && h("span", { class: "tag good" }, "active"), version.is_pinned && [" ", h("span", { class: "tag info" }, "pinned")]];

/** Buttons that let a version answer, or release one that is held. */
export function activateButtons(version, onDone) {
  const ask = async (title, what, label, pinned) => {
    const done = await confirmed({ title, what: h("p", {}, what), label, act: () => post(`guidelines/${version.id}/activate`, { pinned }) });
    if (done) await onDone(done);
  };
  if (version.is_active && version.is_pinned) {
    return h("button", { type: "button", onclick: () => ask(`Release version ${version.version}?`, "It goes on answering until a refit does better on runs that neither had seen.", "Release it", false) }, "Release");
  }
  if (version.is_active) {
    return h("button", { type: "button", onclick: () => ask(`Hold version ${version.version}?`, "No refit will replace it until it is released or another version is activated by hand.", "Hold it", true) }, "Hold");
  }
  return h("button", { type: "button", onclick: () => ask(`Let version ${version.version} answer for ${version.cohort}?`,
    "From now on every recommendation of this cohort comes from it, and no refit replaces it until it is released.", "Let it answer", true) }, "Activate");
}
