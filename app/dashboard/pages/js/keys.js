// The key of a service that needs one: asked for once, kept by this browser for this service, forgotten on demand.

import { h } from "./dom.js";

const STORED = "growthlaw.key";
let asking = null;

export const storedKey = () => localStorage.getItem(STORED);
export const forgetKey = () => localStorage.removeItem(STORED);

/** Ask for a key; `why` is what the service said. Calls at the same time share one dialog. Null where the reader gave none. */
export function askForKey(why) {
  asking ??= ask(why).finally(() => { asking = null; });
  return asking;
}

function ask(why) {
  return new Promise((resolve) => {
    const input = h("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", placeholder: "glk_...", required: true });
    const form = h("form", { method: "dialog", class: "stack" },
      h("h2", { id: "key-title" }, "This service needs a key"),
      h("p", { class: "soft" }, why.charAt(0).toUpperCase() + why.slice(1)),
      h("div", { class: "field" }, h("label", { for: "key" }, "Key"), input,
        h("p", { class: "hint" }, "An admin makes one with `growthlaw keys create NAME --scope plan`. It stays in this browser until you forget it.")),
      h("div", { class: "row" }, h("button", { class: "first", value: "use" }, "Use this key"),
        h("button", { value: "none", formnovalidate: true }, "Not now")));
    const dialog = h("dialog", { "aria-labelledby": "key-title" }, form);
    dialog.addEventListener("close", () => {
      const key = dialog.returnValue === "use" ? input.value.trim() : "";
      if (key) localStorage.setItem(STORED, key);
      dialog.remove();
      resolve(key || null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
