// A question before what cannot be taken back.

import { h } from "../dom.js";

/** Ask; true where the reader says yes. `yes` and `no` are what the buttons say, the harmless one is focused. */
export function confirmed({ title, text, yes, no }) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "confirm-title" },
      h("form", { method: "dialog", class: "stack" }, h("h2", { id: "confirm-title" }, title), h("p", {}, text),
        h("div", { class: "row" }, h("button", { value: "no", autofocus: true }, no), h("button", { value: "yes", class: "danger" }, yes))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
