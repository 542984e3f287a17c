// Charts: the one vendored library, loaded when the first chart is drawn, in the page's own colours, with its data to read.

import { fill, h, table } from "./dom.js";

const LIBRARY = new URL("../vendor/plotly-cartesian-4.1.1.min.js", import.meta.url);
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset", scrollZoom: false };
let library = null;
const drawn = new Map();

function load() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = LIBRARY;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => { library = null; reject(new Error("the chart library could not be loaded")); };
    document.head.append(script);
  });
  return library;
}

/** A colour of the page by its name in base.css ("accent", "series-2"); opacity below 1 gives an rgba. */
export function colour(name, opacity = 1) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  if (opacity === 1) return value;
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(value.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}

function layoutWith(own) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line-strong"), linecolor: colour("line-strong"), ticks: "outside", automargin: true, exponentformat: "power" };
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 60, r: 20, t: 20, b: 50 }, height: 360,
    font: { family: getComputedStyle(document.body).fontFamily, size: 14, color: colour("text") },
    hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line-strong"), font: { color: colour("text") } },
    legend: { orientation: "h", y: -0.22, x: 0 }, hovermode: "closest",
  };
  const merged = { ...base, ...own };
  for (const name of ["xaxis", "yaxis", "xaxis2", "yaxis2"]) {
    if (own[name] || name.length === 5) merged[name] = { ...axis, ...own[name] };
  }
  return merged;
}

/**
 * Draw a chart into `element`. `make()` returns `{traces, layout, summary, columns, rows}` in the current colours (it is
 * called again when they change): `summary` is the sentence for those who do not see it, `columns` and `rows` (as dom.table
 * takes them) the data below it. Returns Plotly's element, whose events may be listened to.
 */
export async function chart(element, make) {
  const plotly = await load();
  let box = element.querySelector(":scope > .chart");
  if (!box) {
    box = h("div", { class: "chart", role: "img" });
    fill(element, box, h("details", { class: "no-print small" }, h("summary", {}, "Data of this chart"), h("div", {})));
  }
  const { traces, layout = {}, summary, columns, rows } = make();
  box.setAttribute("aria-label", summary);
  await plotly.react(box, traces, layoutWith(layout), CONFIG);
  const details = element.querySelector(":scope > details");
  details.hidden = !columns;
  const tell = () => details.open && columns && fill(details.lastElementChild, table(columns, rows, { caption: summary }));
  details.ontoggle = tell;
  tell();
  drawn.set(element, make);
  return box;
}

document.addEventListener("themechange", () => {
  for (const [element, make] of drawn) {
    if (element.isConnected) chart(element, make);
    else drawn.delete(element);
  }
});
