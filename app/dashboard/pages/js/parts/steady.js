// Pages that change while somebody reads them: asked again and again, and drawn anew under the reader's hand.

import { fill } from "../dom.js";

/** As dom.fill, but what was focused (by its id) stays focused and what was scrolled (by its label) stays where it was. */
export function refill(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
  const scrolled = [...element.querySelectorAll("[aria-label]")].filter((one) => one.scrollLeft).map((one) => [one.getAttribute("aria-label"), one.scrollLeft]);
  fill(element, ...children);
  for (const [label, left] of scrolled) {
    const found = [...element.querySelectorAll("[aria-label]")].find((one) => one.getAttribute("aria-label") === label);
    if (found) found.scrollLeft = left;
  }
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  return element;
}

/**
 * Ask again and again: `ask()` is called, and again as many seconds later as it returned (never, where it returned null). While
 * nobody looks at the page it rests. Returns a function that calls it at once.
 */
export function keepAsking(ask) {
  let timer;
  let asking = null;
  const now = () => {
    clearTimeout(timer);
    asking ??= Promise.resolve(ask()).then((seconds) => {
      asking = null;
      if (seconds !== null && !document.hidden) timer = setTimeout(now, seconds * 1000);
    });
    return asking;
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) now(); });
  now();
  return now;
}
