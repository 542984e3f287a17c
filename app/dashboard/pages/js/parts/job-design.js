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

// An answer's decision points are those of its own design; what was started may lie a batch beside it.
const SAME_DESIGN = 0.05;

/**
 * `{points, why}`: the decision points of the kept answer `kept` on the run's own axes (`tokens`, `flops`), or why there are none:
 * losses compare within a cohort alone, and points of another design would mislead.
 */
export function decisionPoints(job, run, kept) {
  const none = (why) => ({ points: [], why });
  if (job.role !== "grown") return none("");
  if (!kept) return none("The job follows no kept answer, so it has no decision points.");
  const { answer } = kept;
  if (!answer.decision_points?.length) return none("The answer that the job follows names no decision points: it rests on no fitted laws, or does not say grow.");
  if (kept.cohort !== job.cohort) return none(`The answer that the job follows speaks of cohort ${kept.cohort ?? "none"}, so its decision points are not this run's.`);
  const same = (one, other) => Math.abs(one / other - 1) <= SAME_DESIGN;
  const isSame = same(answer.growth_timing_tokens, run.growth_timing_tokens) && same(answer.growth_factor, run.growth_factor) && same(answer.target_model.params, run.target_params);
  if (!isSame) return none("The run has another target, growth factor or growth timing than the answer that it follows, so the answer's decision points are not this run's.");
  const ahead = answer.decision_points.filter((point) => point.tokens_after_growth <= run.planned_tokens);
  if (!ahead.length) return none("The run ends before the decision points of the answer that it follows.");
  const base = run.growth_timing_tokens * run.base_flops_per_token;
  const points = ahead.map((point) => ({ ...point, tokens: run.growth_timing_tokens + point.tokens_after_growth, flops: base + point.tokens_after_growth * run.target_flops_per_token }));
  return { points, why: "" };
}
