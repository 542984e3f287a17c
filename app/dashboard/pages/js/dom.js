// Building elements without markup in strings: text is always text, whatever a run is called.

/**
 * An element. Attributes: `class`, `for`, `on<event>` (a function), `dataset` (an object), anything else as an attribute;
 * null, undefined and false are left out, true is an empty attribute. Children: nodes, strings, numbers, arrays; null is left out.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on") && typeof value === "function") element.addEventListener(name.slice(2).toLowerCase(), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Put `children` in the place of what `element` holds. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** The element of that id; it must be there. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element;
}

/** `fn`, called once `milliseconds` after its last call. */
export function debounce(fn, milliseconds) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => fn(...values), milliseconds);
  };
}

/**
 * A table. Columns: `{title, cell: (row) => child, number: bool, title_hint}`; numbers stand on the right.
 */
export function table(columns, rows, { caption = null } = {}) {
  const head = columns.map((c) => h("th", { scope: "col", class: c.number ? "number" : null, title: c.hint }, c.title));
  const body = rows.map((row) =>
    h("tr", {}, columns.map((c) => h("td", { class: c.number ? "number" : null }, c.cell(row)))),
  );
  return h("div", { class: "table-wrap", tabindex: 0, role: "region", "aria-label": caption ?? columns[0].title },
    h("table", {}, caption && h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

/** Save `text` as a file of the reader's. */
export function download(name, text, type = "text/plain") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
