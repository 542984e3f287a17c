// A question before a deed that others feel: what will happen, why it is done, and two ways out.

import { h } from "../dom.js";

let number = 0;

/**
 * Ask before a deed. `act(why)` does it; what it throws stands in the dialog, which stays open. Resolves to what `act` gave,
 * or null where the reader went back.
 *
 * @param {{title: string, what: any, label: string, danger?: boolean, askWhy?: string, fields?: Node, back?: string, act: (why: string) => Promise<any>}} asked
 *   `askWhy` is the label of a text that must be given; null asks for none.
 */
export function confirmed({ title, what, label, danger = false, askWhy = null, fields = null, back = "Go back", act }) {
  return new Promise((resolve) => {
    const id = `confirm-${(number += 1)}`;
    const wrong = h("p", { class: "wrong note bad", role: "alert", hidden: true });
    const why = askWhy && h("textarea", { id: `${id}-why`, rows: 2, maxlength: 1000, required: true });
    const go = h("button", { type: "submit", class: danger ? "danger" : "first" }, label);
    let result = null;
    const form = h("form", { class: "stack" }, h("h2", { id }, title), h("div", {}, what), fields,
      why && h("div", { class: "field" }, h("label", { for: `${id}-why` }, askWhy), why), wrong,
      h("div", { class: "row" }, go, h("button", { type: "button", autofocus: danger, onclick: () => dialog.close() }, back)));
    const dialog = h("dialog", { "aria-labelledby": id }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      go.disabled = true;
      try {
        result = await act(why ? why.value.trim() : "");
        dialog.close();
      } catch (error) {
        wrong.textContent = error.message;
        wrong.hidden = false;
        go.disabled = false;
      }
    });
    dialog.addEventListener("close", () => { dialog.remove(); resolve(result); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
