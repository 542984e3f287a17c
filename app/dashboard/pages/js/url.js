// What a page shows stands in its URL: a plan is a link.

/** The query of this page's URL as an object of strings; a name that stands twice has its last value. */
export function readState() {
  return Object.fromEntries(new URLSearchParams(location.search));
}

/**
 * Put `state` into the URL; null, undefined and "" are left out. With `push` the back button comes back here.
 */
export function writeState(state, { push = false } = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, String(value));
  }
  const url = query.size ? `?${query}` : location.pathname;
  if (url === location.search || (url === location.pathname && !location.search)) return;
  history[push ? "pushState" : "replaceState"](null, "", url);
}

/** A link to another page with a state. */
export function linkTo(page, state = {}) {
  const query = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return query.size ? `${page}?${query}` : page;
}
