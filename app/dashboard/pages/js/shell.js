// What every page has: the header, light or dark, and the three states that a part can be in besides "there".

import { ApiError } from "./api.js";
import { fill, h } from "./dom.js";
import { forgetKey, storedKey } from "./keys.js";

const PAGES = [
  ["index.html", "Plan"], ["next.html", "What to run next"], ["runs.html", "Runs"], ["jobs.html", "Jobs"],
  ["workers.html", "Workers"], ["guidelines.html", "Guidelines"],
];
// Pages of one thing belong to the page of all.
const BELONGS_TO = { "run.html": "runs.html", "import.html": "runs.html", "job.html": "jobs.html", "guideline.html": "guidelines.html", "": "index.html" };
const THEME = "growthlaw.theme";

/** Draw the header. Call once, first, from a page's own script. */
export function startPage() {
  const file = location.pathname.split("/").pop();
  const current = BELONGS_TO[file] ?? file;
  const links = PAGES.map(([page, title]) => h("a", { href: page, "aria-current": page === current ? "page" : null }, title));
  const theme = h("button", { type: "button", class: "quiet", onclick: () => { switchTheme(); tellTheme(); } });
  const tellTheme = () => fill(theme, currentTheme() === "dark" ? "Light" : "Dark", h("span", { class: "visually-hidden" }, " colours"));
  tellTheme();
  const forget = storedKey() && h("button", { type: "button", class: "quiet", onclick: () => { forgetKey(); location.reload(); } }, "Forget key");
  document.body.prepend(
    h("a", { class: "skip", href: "#main" }, "Skip to the content"),
    h("header", { class: "top" }, h("a", { class: "name", href: "index.html" }, "Growthlaw"),
      h("nav", { "aria-label": "Pages" }, links), forget, theme),
  );
}

/** "light" or "dark"; theme.js set it before the first picture. */
export const currentTheme = () => document.documentElement.dataset.theme;

function switchTheme() {
  document.documentElement.dataset.theme = currentTheme() === "dark" ? "light" : "dark";
  localStorage.setItem(THEME, currentTheme());
  document.dispatchEvent(new Event("themechange"));
}

/** "Loading what": for what takes longer than a blink. */
export function loading(element, what) {
  element.setAttribute("aria-busy", "true");
  return fill(element, h("p", { class: "state loading", role: "status" }, h("span", { class: "spin", "aria-hidden": "true" }), ` Loading ${what}`));
}

/** Nothing there yet: what it is, and what to do to have it. */
export function empty(element, title, ...more) {
  element.removeAttribute("aria-busy");
  return fill(element, h("div", { class: "state" }, h("h2", {}, title), more));
}

/** What went wrong, in the service's own words, and a way to try again. */
export function failed(element, error, retry = null) {
  element.removeAttribute("aria-busy");
  if (!(error instanceof ApiError)) console.error(error);
  const title = error.status === 0 ? "The service cannot be reached" : error.problem?.title ?? "Something went wrong";
  const told = error.problem?.errors?.length ? error.problem.errors.map((one) => h("li", {}, h("code", {}, one.pointer), " ", one.detail)) : null;
  return fill(element, h("div", { class: "note bad", role: "alert" }, h("h3", {}, title),
    told ? h("ul", {}, told) : h("p", {}, error.message), retry && h("button", { type: "button", onclick: retry }, "Try again")));
}

/** Load what `element` shows: `ask` gives a promise, `draw(value)` what stands in it then. Errors show, and may be tried again. */
export async function show(element, what, ask, draw) {
  loading(element, what);
  try {
    const value = await ask();
    element.removeAttribute("aria-busy");
    const drawn = await draw(value);
    if (drawn) fill(element, drawn);
  } catch (error) {
    if (error.name !== "AbortError") failed(element, error, () => show(element, what, ask, draw));
  }
}

/** Say something for a moment, also to those who listen to the page. */
export function announce(text) {
  let live = document.getElementById("live");
  if (!live) {
    live = h("div", { id: "live", role: "status", "aria-live": "polite", class: "visually-hidden" });
    document.body.append(live);
  }
  live.textContent = text;
}
