// Labelled fields, and errors that the service told of them.

import { h } from "../dom.js";

/** A labelled field around `input`, which must have an id; `hint` stands below it. */
export function field(label, input, { hint = null, className = "" } = {}) {
  const about = hint && h("p", { class: "hint", id: `${input.id}-hint` }, hint);
  if (about) input.setAttribute("aria-describedby", about.id);
  return h("div", { class: `field ${className}` }, h("label", { for: input.id }, label), input, about);
}

/** A select of `[value, text]` pairs. */
export function select(id, pairs, value, onchange) {
  const element = h("select", { id, onchange: onchange && (() => onchange(element.value)) },
    pairs.map(([one, text]) => h("option", { value: one }, text)));
  element.value = value ?? "";
  if (element.selectedIndex < 0) element.selectedIndex = 0;
  return element;
}

/** Say at `input` what was wrong with it; null clears it. */
export function mark(input, told) {
  const id = `${input.id}-wrong`;
  document.getElementById(id)?.remove();
  const about = (input.getAttribute("aria-describedby") ?? "").split(" ").filter((one) => one && one !== id);
  if (told) {
    (input.closest(".field") ?? input.parentElement).append(h("p", { class: "wrong", id }, told));
    about.push(id);
  }
  for (const [name, value] of [["aria-invalid", told ? "true" : ""], ["aria-describedby", about.join(" ")]]) {
    if (value) input.setAttribute(name, value);
    else input.removeAttribute(name);
  }
}
