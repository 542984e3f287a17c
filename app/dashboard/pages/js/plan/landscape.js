// One click below the answer: the loss over (d, g), growing against scratch over FLOPs, and how the saving fades.

import { get, listAll, post } from "../api.js";
import { chart, colour } from "../charts.js";
import { fill, h } from "../dom.js";
import { count, factor, flops, loss, power, tokens } from "../format.js";
import { empty, failed } from "../shell.js";
import { questionOf, surfaceQueryOf } from "./state.js";

const RULES = ["gstack", "null", "constant_fraction", "staged", "eighty_percent"];
const NUM_BUDGETS = 9;
const FACTORS = [1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 11, 16];
const MOST_FACTORS = 20;
const NUM_COLUMNS = 90;
const known = new Map();
const SAME_SIZE = 0.01;

/** The landscape of `answer` in `element`; `signal` drops what is no longer asked for. Charts that stand are drawn over. */
export async function drawLandscape(element, answer, state, signal) {
  if (answer.guideline.id.startsWith("published:") || !answer.stakes) {
    element.removeAttribute("aria-busy");
    return void empty(element, "No landscape here", h("p", {}, `${answer.guideline.name} predicts no losses for this plan. Choose a cohort whose runs carry a fitted guideline, or `, h("a", { href: "import.html" }, "import your runs"), "."));
  }
  const places = placesIn(element);
  element.setAttribute("aria-busy", "true");
  try {
    const query = surfaceQueryOf(state, answer);
    const options = { signal };
    const layers = answer.target_model.num_layers;
    const factors = query.existing_base_tokens ? null : layers ? depthFactors(layers) : FACTORS;
    // The map needs many factors, the comparison only the plan's own.
    const own = answer.growth_factor ?? answer.arms.find((arm) => arm.arm === "grown").growth_factor;
    const [surface, runs] = await Promise.all([get("surface", { ...query, growth_factors: factors }, options), runsOf(state.cohort)]);
    const mine = runs.filter((run) => Math.abs(run.target_params / answer.target_model.params - 1) <= SAME_SIZE && run.final_loss !== null);
    // The map first: whoever moves a slider waits for nothing else. What is drawn beside it is asked for only then.
    await chart(places.map, () => mapOf(surface, answer, mine, []));
    performance.mark("surface-drawn");
    const comparison = { ...query, growth_factors: own === null ? null : [own], num_timings: 3, num_budgets: NUM_BUDGETS };
    const [rules, { budgets }] = await Promise.all([askRules(state, signal), get("surface", comparison, options)]);
    await chart(places.map, () => mapOf(surface, answer, mine, rules));
    fill(places.note, noteOf(surface, rules));
    await chart(places.flops, () => overFlops(budgets, answer, mine));
    await chart(places.fade, () => fadeOf(budgets, answer));
    performance.mark("landscape-drawn");
  } catch (error) {
    if (error.name === "AbortError") return;
    places.root.remove();
    failed(element, error);
  } finally {
    if (!signal.aborted) element.removeAttribute("aria-busy");
  }
}

/** A cohort's finished runs; asked for once, as they do not change with the question. */
function runsOf(cohort) {
  if (!cohort) return Promise.resolve([]);
  if (!known.has(cohort)) {
    const asked = listAll("runs", { cohort, status: "finished" }, { most: 2000 });
    known.set(cohort, asked);
    asked.catch(() => known.delete(cohort));
  }
  return known.get(cohort);
}

/** The charts' places, made once so that a new surface is drawn where the old one stood. */
function placesIn(element) {
  if (!element.querySelector(".map")) {
    fill(element, h("div", { class: "landscape" },
      h("section", { class: "wide" }, h("h3", {}, "Final loss over growth timing and growth factor"), h("div", { class: "map" }), h("p", { class: "small soft map-note" })),
      h("section", {}, h("h3", {}, "Growing against scratch over FLOPs"), h("div", { class: "over-flops" })),
      h("section", {}, h("h3", {}, "Saved tokens against tokens per parameter"), h("div", { class: "over-tokens" }))));
  }
  const find = (name) => element.querySelector(name);
  return { root: find(".landscape"), map: find(".map"), note: find(".map-note"), flops: find(".over-flops"), fade: find(".over-tokens") };
}

/** The factors that whole layers give, from nearly 1 to 16. */
function depthFactors(layers) {
  const found = Array.from({ length: layers - 1 }, (_, i) => layers / (i + 1)).filter((one) => one <= 16);
  const step = Math.ceil(found.length / MOST_FACTORS);
  return found.filter((_, i) => i % step === 0);
}

async function askRules(state, signal) {
  const { cohort: _, ...question } = questionOf(state);
  const { results } = await post("recommend/batch", { questions: RULES.map((name) => ({ ...question, guideline: `published:${name}` })) }, { signal });
  return results.map(({ answer }) => answer).filter(Boolean)
    .map((answer) => ({ name: answer.guideline.name, decision: answer.decision, d: answer.growth_timing_tokens, g: answer.growth_factor }));
}

// --- the map -------------------------------------------------------------------------------------------------------------

function mapOf(surface, answer, runs, rules) {
  const rows = surface.rows.filter((row) => row.grade !== "unsupported");
  const first = Math.max(1, ...rows.map((row) => row.growth_timing_tokens[0]));
  const last = Math.max(...rows.map((row) => row.growth_timing_tokens.at(-1)));
  const xs = Array.from({ length: NUM_COLUMNS }, (_, i) => first * (last / first) ** (i / (NUM_COLUMNS - 1)));
  const ys = rows.map((row) => row.growth_factor);
  // A row goes on to its neighbours' ends, so that no cell is missing along the edge; what lies beyond it is covered.
  const reach = rows.map((_, i) => Math.max(...rows.slice(Math.max(0, i - 1), i + 2).map((row) => row.growth_timing_tokens.at(-1))));
  const zs = rows.map((row, i) => xs.map((x) => (x <= reach[i] ? at(row, x) : null)));
  const right = last * 1.35;
  const bottom = Math.min(...ys) / 1.06;
  const top = Math.max(...ys) * 1.06;
  const edge = rows.map((row) => row.growth_timing_tokens.at(-1));
  const grid = { x: xs, y: ys, z: zs, type: "contour", connectgaps: false };
  const inside = (d, g) => d >= first && d <= right && g >= bottom && g <= top;
  const shown = rules.filter((rule) => rule.decision === "grow" && rule.d && inside(rule.d, rule.g));
  const grown = runs.filter((run) => run.growth_factor > 1 && inside(run.growth_timing_tokens, run.growth_factor));
  const plan = answer.arms.find((arm) => arm.growth_timing_tokens === answer.growth_timing_tokens && arm.growth_factor !== null);
  const marker = (symbol, name, size = 11) => ({ symbol, size, color: colour(name), line: { color: colour("surface"), width: 1.5 } });
  const traces = [
    { ...grid, colorscale: scale(), ncontours: 18, line: { width: 0.5, color: colour("line-strong") }, colorbar: { title: { text: "nats", side: "right" }, thickness: 12, outlinewidth: 0 },
      hovertemplate: "d %{x:.3s} tokens, g %{y:.3g}<br>%{z:.4f} nats<extra></extra>", name: "expected loss", showlegend: false },
    { ...grid, contours: { type: "constraint", operation: ">", value: surface.near_optimal_loss_nats }, fillcolor: colour("series-3", 0.3), line: { color: colour("series-3"), width: 2.5 },
      hoverinfo: "skip", name: "near-optimal (within 0.25%)", showscale: false, showlegend: true },
    { type: "scatter", mode: "lines", x: [...edge, right, right], y: [...ys, top, bottom], fill: "toself", fillcolor: colour("bad-soft"), line: { color: colour("bad"), width: 1, dash: "dot" },
      hoverinfo: "skip", name: "infeasible: the base takes the whole budget" },
    { type: "scatter", mode: "markers", x: grown.map((run) => run.growth_timing_tokens), y: grown.map((run) => run.growth_factor), marker: marker("circle", "series-2", 9),
      text: grown.map((run) => `${run.name}: ${loss(run.final_loss)} at ${flops(run.compute_flops)}`), hovertemplate: "%{text}<extra></extra>", name: "own runs of this target (any budget)" },
    { type: "scatter", mode: "markers+text", x: shown.map((rule) => rule.d), y: shown.map((rule) => rule.g), text: shown.map((rule) => rule.name), textposition: "top center",
      marker: marker("diamond", "series-4"), hovertemplate: "%{text}<extra></extra>", name: "published rules" },
    { type: "scatter", mode: "markers", x: plan ? [plan.growth_timing_tokens] : [], y: plan ? [plan.growth_factor] : [], marker: marker("star", "text", 17), hovertemplate: "this plan<extra></extra>", name: "this plan" },
  ];
  const layout = {
    height: 500, margin: { l: 60, r: 20, t: 20, b: 120 }, legend: { orientation: "h", y: -0.2, x: 0 },
    xaxis: { type: "log", title: { text: "growth timing d (tokens)" }, range: [Math.log10(first), Math.log10(right)] },
    yaxis: { type: "log", title: { text: "growth factor g" }, range: [Math.log10(bottom), Math.log10(top)], tickvals: ys, ticktext: ys.map((one) => Number(one.toPrecision(3))) },
  };
  const best = rows.flatMap((row) => row.loss_nats.map((value, i) => ({ value, g: row.growth_factor, d: row.growth_timing_tokens[i] }))).reduce((a, b) => (b.value < a.value ? b : a));
  return {
    traces, layout, summary: `Expected final loss over growth timing and factor: lowest ${loss(best.value)} at d = ${tokens(best.d)}, g = ${factor(best.g)}; scratch ${loss(surface.scratch_loss_nats)}.`,
    columns: [
      { title: "g", number: true, cell: (row) => factor(row.growth_factor) }, { title: "best d on the map", number: true, cell: (row) => tokens(row.growth_timing_tokens[lowest(row)]) },
      { title: "expected loss", number: true, cell: (row) => loss(row.loss_nats[lowest(row)]) }, { title: "latest affordable d", number: true, cell: (row) => tokens(row.growth_timing_tokens.at(-1)) },
      { title: "support", cell: (row) => row.grade },
    ],
    rows,
  };
}

const lowest = (row) => row.loss_nats.indexOf(Math.min(...row.loss_nats));

/** A row's loss at timing x, between its points in ln d; its last one beyond them, null before. */
function at(row, x) {
  const ds = row.growth_timing_tokens;
  if (x < ds[0]) return null;
  if (x >= ds.at(-1)) return row.loss_nats.at(-1);
  const right = Math.max(1, ds.findIndex((d) => d >= x));
  const share = Math.log(x / ds[right - 1]) / Math.log(ds[right] / ds[right - 1]);
  return row.loss_nats[right - 1] * (1 - share) + row.loss_nats[right] * share;
}

/** Low losses stand out from the ground in both themes. */
const scale = () => [[0, 0.85], [0.2, 0.5], [0.5, 0.22], [1, 0.03]].map(([place, share]) => [place, mixed(colour("series-1"), colour("surface"), share)]);

/** `share` of one #rrggbb colour in another: colour scales know no transparency. */
function mixed(one, other, share) {
  const parts = [1, 3, 5].map((i) => Math.round(share * parseInt(one.slice(i, i + 2), 16) + (1 - share) * parseInt(other.slice(i, i + 2), 16)));
  return `rgb(${parts.join(",")})`;
}

function noteOf(surface, rules) {
  const off = rules.filter((rule) => rule.decision !== "grow" || !rule.d);
  const told = off.map((rule) => `${rule.name}: ${rule.decision === "grow" ? "no timing" : rule.decision}`).join("; ");
  return `At ${power(surface.compute_flops)} FLOPs, base compute ${surface.base_compute}; scratch ends at ${loss(surface.scratch_loss_nats)}. Rows end where the base would take the whole budget.${told ? ` Published rules without a place on the map: ${told}.` : ""}`;
}

// --- over budgets ----------------------------------------------------------------------------------------------------------

function band(points, x, pair, name) {
  const known = points.filter(pair);
  return { type: "scatter", mode: "lines", x: [...known.map(x), ...known.map(x).reverse()], y: [...known.map((one) => pair(one)[1]), ...known.map((one) => pair(one)[0]).reverse()],
    fill: "toself", fillcolor: colour(name, 0.18), line: { width: 0 }, hoverinfo: "skip", showlegend: false };
}

function overFlops(points, answer, runs) {
  const x = (one) => one.compute_flops;
  const curve = (name, value, title, dash) => ({ type: "scatter", mode: "lines", x: points.map(x), y: points.map(value), line: { color: colour(name), width: 3, dash }, name: title,
    hovertemplate: `${title}: %{y:.4f} nats<extra></extra>` });
  const seen = (which, name, symbol, title) => ({ type: "scatter", mode: "markers", x: which.map((run) => run.compute_flops), y: which.map((run) => run.final_loss), name: title,
    marker: { symbol, color: colour(name), size: 8, line: { color: colour("surface"), width: 1 } }, text: which.map((run) => run.name), hovertemplate: "%{text}: %{y:.4f} nats<extra></extra>" });
  const reach = runs.filter((run) => points.length && run.compute_flops >= x(points[0]) / 1.5 && run.compute_flops <= x(points.at(-1)) * 1.5);
  return {
    traces: [
      band(points, x, (one) => one.scratch_interval, "series-2"), band(points, x, (one) => one.grown_interval, "series-1"),
      curve("series-2", (one) => one.scratch_loss_nats, "from scratch", "dash"), curve("series-1", (one) => one.grown_loss_nats, "grown, at its best timing", "solid"),
      seen(reach.filter((run) => run.growth_factor === 1), "series-2", "circle", "own scratch runs"), seen(reach.filter((run) => run.growth_factor > 1), "series-1", "triangle-up", "own grown runs (any d, g)"),
    ],
    layout: {
      height: 440, margin: { l: 65, r: 15, t: 20, b: 130 }, legend: { orientation: "h", y: -0.25, x: 0 }, xaxis: { type: "log", title: { text: "compute budget (FLOPs)" } }, yaxis: { title: { text: "final loss (nats)" } },
      shapes: [{ type: "line", x0: answer.flops.scratch, x1: answer.flops.scratch, yref: "paper", y0: 0, y1: 1, line: { color: colour("line-strong"), dash: "dot", width: 1.5 } }],
      annotations: [{ x: Math.log10(answer.flops.scratch), y: 1, yref: "paper", text: "this budget", showarrow: false, xanchor: "left", yanchor: "top", font: { color: colour("text-soft") } }],
    },
    summary: "Final loss of the target from scratch and grown, over the compute budget, with 80% bands for a single run.",
    columns: [
      { title: "budget", number: true, cell: (one) => flops(one.compute_flops) }, { title: "scratch", number: true, cell: (one) => loss(one.scratch_loss_nats) },
      { title: "grown", number: true, cell: (one) => loss(one.grown_loss_nats) }, { title: "best d", number: true, cell: (one) => tokens(one.growth_timing_tokens) }, { title: "support", cell: (one) => one.grade },
    ],
    rows: points,
  };
}

function fadeOf(points, answer) {
  const known = points.filter((one) => one.saved_target_tokens !== null);
  const x = (one) => one.tokens_per_parameter;
  const fade = answer.fade.filter((one) => one.saved_target_tokens !== null);
  return {
    traces: [
      band(known, x, (one) => one.saved_interval, "series-3"),
      { type: "scatter", mode: "lines", x: known.map(x), y: known.map((one) => one.saved_target_tokens), line: { color: colour("series-3"), width: 3 }, name: "expected saving", hovertemplate: "%{y:.3s} tokens saved at %{x:.3g} tokens a parameter<extra></extra>" },
      { type: "scatter", mode: "markers", x: fade.map(x), y: fade.map((one) => one.saved_target_tokens), marker: { symbol: "diamond", size: 11, color: colour("series-3"), line: { color: colour("surface"), width: 1.5 } },
        text: fade.map((one) => one.grade), hovertemplate: "%{y:.3s} tokens saved (%{text})<extra></extra>", name: "a quarter, once and four times this budget" },
    ],
    layout: { height: 440, margin: { l: 65, r: 15, t: 20, b: 130 }, legend: { orientation: "h", y: -0.25, x: 0 }, xaxis: { type: "log", title: { text: "tokens per parameter" } }, yaxis: { title: { text: "saved target tokens" }, tickformat: ".2s", range: [0, 2 * Math.max(...known.map((one) => one.saved_target_tokens))] } },
    summary: "Target tokens that growing saves, against tokens per parameter, with 80% bands.",
    columns: [
      { title: "tokens per parameter", number: true, cell: (one) => one.tokens_per_parameter.toPrecision(3) }, { title: "saved", number: true, cell: (one) => tokens(one.saved_target_tokens) },
      { title: "80%", number: true, cell: (one) => (one.saved_interval ? `${count(one.saved_interval[0])} to ${count(one.saved_interval[1])}` : "\u2013") }, { title: "support", cell: (one) => one.grade },
    ],
    rows: known,
  };
}
