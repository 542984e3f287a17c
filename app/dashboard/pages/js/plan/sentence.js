// The answer in words. Every number is the API's, or the API's times the planner's price; where there is none, the words say so.

import { count, factor, figure, flops, gpuHours, interval, money, percent, tokens } from "../format.js";

/** "about 4 in 5", "about 19 in 20": the simplest odds within two points of a chance. */
export function odds(chance) {
  for (const whole of [2, 3, 4, 5, 10, 20]) {
    const part = Math.round(chance * whole);
    if (part > 0 && part < whole && Math.abs(part / whole - chance) <= 0.02) return `about ${part} in ${whole}`;
  }
  return chance > 0.98 ? "more than 49 in 50" : chance < 0.02 ? "fewer than 1 in 50" : `about ${Math.round(chance * 100)} in 100`;
}

/** An amount of compute the way this planner counts: GPU-hours (and money) where hardware is known, else FLOPs. */
export function amount(stake, assumptions) {
  if (!stake || stake.flops === null) return null;
  if (stake.gpu_hours === null) return flops(stake.flops);
  const paid = assumptions.price === null ? "" : ` (${money(stake.gpu_hours * assumptions.price, assumptions.currency)})`;
  return `${gpuHours(stake.gpu_hours)}${paid}`;
}

/** The held-out scores that an answer quotes: of the way to hold out that tested the most signs; null without any. */
export function heldOut(answer) {
  const found = answer.guideline.held_out;
  const ways = [found, ...Object.values(found ?? {})].filter((scores) => scores?.sign_cases > 0);
  // Where two ways tested as many, the one that went worse speaks.
  return ways.sort((a, b) => b.sign_cases - a.sign_cases || a.sign_hits - b.sign_hits)[0] ?? null;
}

function heldOutSentence(answer) {
  const scores = heldOut(answer);
  const chance = answer.expected.chance_growth_helps;
  if (!scores) return "No comparison was held out to test this guideline, so no odds are given.";
  const hits = `In ${scores.sign_hits} of ${scores.sign_cases} held-out comparisons the sign was right`;
  if (chance === null) return `${hits}; for your plan no odds are given.`;
  return `${hits}; for your plan growing ends lower than scratch in ${odds(chance)}.`;
}

/** The arm that the answer recommends; null where it recommends none: a published prior far from its own runs. */
export function chosenArm(answer) {
  const { base, grown, total } = answer.flops;
  const isSunk = base !== null && total < (base + grown) * (1 - 1e-9);  // some of the base was paid before
  const name = { grow: isSunk ? "grown_sunk_base" : "grown", scratch: "scratch", smaller: "best_fixed_size" }[answer.decision];
  return isUnsupported(answer) ? null : answer.arms.find((one) => one.arm === name) ?? null;
}

function stakesSentence(answer, assumptions) {
  if (!answer.stakes) return null;
  const { gain_if_right: gain, regret_if_wrong: regret } = answer.stakes;
  const worth = (stake) => amount(stake, assumptions) ?? `${figure(stake.nats)} nats`;
  if (gain && regret) return `If growing is wrong you lose ${worth(regret)}; if it is right you save ${worth(gain)}.`;
  const told = gain
    ? `Every draw of the laws says that growing beats scratch, by ${worth(gain)} on average.`
    : `Every draw of the laws says that growing ends above scratch, by ${worth(regret)} on average.`;
  return `${told} ${worstSentence(answer, worth)}`.trim();
}

/** What being wrong costs where the draws agree about growth: the recommended arm in its worst draw, against all arms. */
function worstSentence(answer, worth) {
  const worst = chosenArm(answer)?.worst_regret;
  if (!worst) return "";
  if (worst.nats <= 0) return `In none of ${worst.num_draws} draws does another way of spending this budget end lower.`;
  return `If this plan is wrong you lose at most ${worth(worst)}: the worst of ${worst.num_draws} draws, against scratch, growing and the best fixed size.`;
}

/** What stands before everything else: a target that this budget is too small for. */
export const oversizedSentence = (answer) => (answer.decision === "smaller" ? null : answer.warnings.find((text) => text.startsWith("The target is over-sized")) ?? null);

/** What to do, in one line. */
export function headline(answer) {
  const size = `${count(answer.target_model.params)} target`;
  switch (answer.decision) {
    case "grow": {
      const base = answer.base_model.num_layers ? `a ${answer.base_model.num_layers}-layer base` : `a base of ${count(answer.base_model.params)} parameters`;
      return `Grow: train ${base} for ${tokens(answer.growth_timing_tokens)}, then grow it ${factor(answer.growth_factor)}.`;
    }
    case "smaller":
      return `Train a smaller model: ${count(answer.best_fixed_size.params)} parameters end lower than the ${size} for this budget.`;
    case "infeasible":
      return "This budget cannot pay for growth.";
    default:
      return `Train the ${size} from scratch.`;
  }
}

/** The director's sentences: a wrong question first, then odds and the cost of being wrong. */
export function directorSentences(answer, assumptions) {
  const told = [oversizedSentence(answer), heldOutSentence(answer), stakesSentence(answer, assumptions)].filter(Boolean);
  const { speedup, speedup_interval: span, basis } = answer.expected;
  if (speedup !== null) {
    const range = span ? ` (${interval(span, percent)})` : "";
    const source = basis.startsWith("published") ? "The published figure" : "Expected";
    told.push(`${source}: growth reaches scratch's loss with ${percent(1 - 1 / (1 + speedup))} less compute, a speedup of ${percent(speedup)}${range}, ${tokens(answer.expected.saved_target_tokens)} saved.`);
  }
  return told;
}

export const isUnsupported = (answer) => answer.support.grade === "unsupported";
