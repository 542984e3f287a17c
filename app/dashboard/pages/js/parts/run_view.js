// The chart of chosen runs with what the reader may set: axes, metric, and what runs are held against.

import { fill, h } from "../dom.js";
import { factor, params, tokens } from "../format.js";
import { failed, loading } from "../shell.js";
import { linkTo } from "../url.js";
import { drawCurves, finals, loadCurves, metricsOf, seriesOf } from "./curves.js";
import { field, select } from "./fields.js";

const NONE = "none";

/**
 * The chart of `runs` in `element`. `state` holds `over`, `x`, `y`, `metric` ("NAME|DATASET") and `against` ("control", "none"
 * or a run's id) and is changed through `onChange(changes)`, which the page writes into its URL. Returns a function that draws
 * anew for other runs and another state.
 */
export function runView(element, onChange) {
  const controls = h("div", { class: "controls" });
  const keys = h("p", { class: "row small" });
  const area = h("div", {});
  const reading = h("div", { class: "reading note", role: "status", "aria-live": "off" });
  const below = h("div", {});
  let abort = new AbortController();

  async function draw(runs, state) {
    abort.abort();
    abort = new AbortController();
    const { signal } = abort;
    if (!area.childElementCount || !element.contains(area)) {
      fill(element, keys, controls, area, reading, below);
      loading(area, "curves");
    }
    fill(keys, runs.map(keyOf));
    try {
      const metrics = await metricsOf(runs, { signal });
      if (!metrics.length) {
        fill(controls);
        fill(area, h("div", { class: "state" }, h("p", {}, "No points are stored of what is chosen here: only its header came in.")));
        fill(reading);
        return void fill(below);
      }
      const [metric, dataset] = (metrics.some(([value]) => value === state.metric) ? state.metric : metrics[0][0]).split("|");
      const against = state.against ?? "control";
      const other = against === NONE ? null : against === "control" ? "control" : runs.find((run) => run.run_id === against) ?? "control";
      const loaded = await loadCurves(runs, { metric, dataset, against: other }, { signal });
      if (signal.aborted) return;
      area.removeAttribute("aria-busy");
      const names = new Map(runs.map((run) => [run.run_id, run.name]));
      const nameOf = (id) => names.get(id) ?? (other === "control" ? `The control (${id})` : id);
      fill(controls, settings(runs, metrics, { ...state, metric: `${metric}|${dataset}`, against }, onChange));
      const drawn = loaded.filter(({ curve }) => curve.points.length);
      if (!drawn.length) {
        fill(area, h("div", { class: "state" }, h("p", {}, "None of these runs has points of this metric.")));
        return void fill(reading);
      }
      const positive = drawn.every(({ curve }) => curve.points.every((point) => point.value > 0));
      const view = { over: state.over ?? "flops", x: state.x ?? "log", y: positive ? state.y ?? "log" : "linear" };
      await drawCurves(area, reading, drawn, view, nameOf);
      fill(below, finals(loaded, nameOf), mixedCohorts(runs, against));
    } catch (error) {
      if (error.name !== "AbortError") failed(area, error, () => draw(runs, state));
    }
  }
  return draw;
}

function keyOf(run, place) {
  const grown = run.growth_factor > 1 ? `, grown ${factor(run.growth_factor)} after ${tokens(run.growth_timing_tokens)}` : "";
  return h("span", {}, h("span", { class: seriesOf(place).key, "aria-hidden": "true" }), h("a", { href: linkTo("run.html", { id: run.run_id }) }, run.name), " ",
    h("span", { class: "soft" }, `${params(run.target_params)}${grown}`));
}

function settings(runs, metrics, state, onChange) {
  const scales = [["log", "logarithmic"], ["linear", "linear"]];
  return [
    field("Metric", select("metric", metrics, state.metric, (metric) => onChange({ metric }))),
    field("Over", select("over", [["flops", "FLOPs"], ["tokens", "tokens"]], state.over, (over) => onChange({ over }))),
    field("Across", select("x", scales, state.x, (x) => onChange({ x }))),
    field("Up", select("y", scales, state.y, (y) => onChange({ y }))),
    field("Speedup against", select("against",
      [["control", "each run's own control"], ...(runs.length > 1 ? runs.map((run) => [run.run_id, run.name]) : []), [NONE, "nothing"]],
      state.against, (against) => onChange({ against }))),
  ];
}

function mixedCohorts(runs, against) {
  const cohorts = new Set(runs.map((run) => run.cohort));
  if (cohorts.size < 2) return null;
  return h("p", { class: "note warn" }, `These runs are of ${cohorts.size} cohorts (${[...cohorts].join(", ")}): their losses may be looked at together, but not compared`,
    against === NONE ? "." : ", so speedups are told within a cohort only.");
}
