// What an answer costs this planner: GPU-hours, money, days and dates of each arm, from the answer's numbers and the planner's own.

const DAY = 86_400_000;
const TITLES = { scratch: "Scratch", best_fixed_size: "Best fixed size", grown: "Grow", grown_sunk_base: "Grow, base already paid (sunk)" };

/**
 * The rows of the one-pager. Growing also pays the pilot and the re-tuning of its recipe; both run first, on the same GPUs.
 * Amounts are null where the answer or the planner does not give what they need.
 */
export function rowsOf(answer, assumptions) {
  return answer.arms.map((arm) => {
    const grows = arm.arm.startsWith("grown") && arm.gpu_hours !== null;
    const before = grows ? assumptions.pilotHours + assumptions.retuneHours : 0;
    const hours = arm.gpu_hours === null ? null : arm.gpu_hours + before;
    return {
      arm, title: TITLES[arm.arm], hours, before,
      money: hours === null || assumptions.price === null ? null : hours * assumptions.price,
      days: hours === null || !assumptions.numGpus ? null : hours / assumptions.numGpus / 24,
      dates: datesOf(arm, answer, assumptions, hours),
    };
  });
}

/** When there is something to decide: `[{what, date}]`, dates null without a start. */
function datesOf(arm, answer, assumptions, hours) {
  if (hours === null || !assumptions.numGpus) return [];
  const at = (gpuHours) => (assumptions.start ? new Date(assumptions.start.getTime() + (gpuHours / assumptions.numGpus / 24) * DAY) : null);
  const found = [];
  let spent = 0;
  if (arm.arm.startsWith("grown")) {
    if (assumptions.pilotHours) {
      spent += assumptions.pilotHours;
      found.push({ what: "pilot read: go or not", days: spent / assumptions.numGpus / 24, date: at(spent) });
    }
    spent += assumptions.retuneHours;
    if (arm.paid_base_gpu_hours) {
      found.push({ what: "base grown", days: (spent + arm.paid_base_gpu_hours) / assumptions.numGpus / 24, date: at(spent + arm.paid_base_gpu_hours) });
    }
    // The looks after growth are those of the arm that the answer itself is about.
    if (arm.growth_timing_tokens === answer.growth_timing_tokens && arm.tokens === answer.grown_tokens) {
      for (const point of answer.decision_points) {
        const share = point.compute_flops / arm.compute_flops;
        const hoursThere = spent + share * arm.gpu_hours;
        found.push({ what: `stop above ${point.stop_above_nats.toFixed(3)} nats`, days: hoursThere / assumptions.numGpus / 24, date: at(hoursThere) });
      }
    }
  }
  found.push({ what: "end", days: hours / assumptions.numGpus / 24, date: at(hours) });
  return found;
}

export const dayOf = (date) => date.toISOString().slice(0, 10);

/** An instant of a schedule as people read it: its date, else the day counted from the start. */
export function when({ date, days }) {
  return date ? dayOf(date) : `day ${days < 10 ? days.toPrecision(2) : Math.round(days)}`;
}
