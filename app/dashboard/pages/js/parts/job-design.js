// What a job is about to do: its phases in tokens and FLOPs, and where the answer that it follows would look.

/** The phases of a run by its header: `[{name, layers, tokens, flops}]`, base before grown; one of a run that does not grow. */
export function phasesOf(run) {
  const last = { name: run.base_params === null ? "single" : "grown", layers: run.num_target_layers, tokens: run.planned_tokens, flops: run.planned_tokens * run.target_flops_per_token };
  if (run.base_params === null) return [last];
  return [{ name: "base", layers: run.num_base_layers, tokens: run.growth_timing_tokens, flops: run.growth_timing_tokens * run.base_flops_per_token }, last];
}

/** Tokens of the whole run at a point: those of the base phase stand before those of the grown one. */
export function runTokens(run, point) {
  return point.tokens + (point.phase === "grown" || point.phase === "growth" ? run.growth_timing_tokens : 0);
}

// An answer's decision points are those of its own growth timing; what was started may lie a batch beside it.
const SAME_TIMING = 0.05;

/**
 * `{points, why}`: the decision points of the kept answer `kept` on the run's axes (`tokens`, `flops`), or why there are none.
 */
export function decisionPoints(job, run, kept) {
  if (job.role !== "grown") return { points: [], why: "" };
  if (!kept) return { points: [], why: "The job follows no kept answer, so it has no decision points." };
  const { answer } = kept;
  if (!answer.decision_points?.length) return { points: [], why: "The answer that the job follows rests on no fitted laws, so it names no decision points." };
  const same = Math.abs(answer.growth_timing_tokens / run.growth_timing_tokens - 1) <= SAME_TIMING && Math.abs(answer.growth_factor / run.growth_factor - 1) <= SAME_TIMING;
  if (!same) return { points: [], why: "The run grows by another factor or at another time than the answer that it follows, so the answer's decision points are not this run's." };
  const end = phasesOf(run).reduce((sum, phase) => sum + phase.flops, 0);
  const points = answer.decision_points.map((point) => ({ ...point, tokens: run.growth_timing_tokens + point.tokens_after_growth, flops: point.compute_flops }));
  return { points: points.filter((point) => point.flops <= end * 1.02), why: "" };
}
