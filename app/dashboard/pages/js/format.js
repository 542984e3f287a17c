// Numbers as people read them: three significant figures, a unit, a true minus. Null and NaN are a dash.

const NONE = "\u2013";
const STEPS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
const known = (value) => typeof value === "number" && Number.isFinite(value);
const minus = (text) => text.replace("-", "\u2212");

/** Three significant figures, never in e-notation within 1e-4 to 1e6. */
export function figure(value, digits = 3) {
  if (!known(value)) return NONE;
  if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6)) return power(value, digits);
  return minus(new Intl.NumberFormat("en", { maximumSignificantDigits: digits }).format(value));
}

/** 1.2 x 10^21 with a raised exponent. */
export function power(value, digits = 3) {
  if (!known(value)) return NONE;
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const raised = String(Number(exponent)).replace(/[-0-9]/g, (c) => (c === "-" ? "\u207b" : "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[c]));
  return minus(`${Number(mantissa)}\u00d710${raised}`);
}

/** A count: 402k, 7B, 1.5T. */
export function count(value, digits = 3) {
  if (!known(value)) return NONE;
  for (const [step, letter] of STEPS) {
    if (Math.abs(Number(value.toPrecision(digits))) >= step) return minus(`${Number((value / step).toPrecision(digits))}${letter}`);
  }
  return minus(String(Number(value.toPrecision(digits))));
}

export const params = (value) => (known(value) ? `${count(value)} parameters` : NONE);
export const tokens = (value) => (known(value) ? `${count(value)} tokens` : NONE);
export const flops = (value) => (known(value) ? `${power(value)} FLOPs` : NONE);
export const gpuHours = (value) => (known(value) ? `${count(value)} GPU-hours` : NONE);
export const factor = (value) => (known(value) ? `\u00d7${figure(value)}` : NONE);
export const percent = (value, digits = 0) => (known(value) ? `${minus((value * 100).toFixed(digits))}%` : NONE);

/** A probability in per cent that never claims to be certain. */
export function chance(value) {
  if (!known(value)) return NONE;
  return value > 0.99 ? ">99%" : value < 0.01 ? "<1%" : percent(value);
}

/** A loss to the fourth decimal. */
export const loss = (value) => (known(value) ? `${value.toFixed(4)} nats` : NONE);

/** A difference of losses, always with its sign. */
export function delta(value) {
  if (!known(value)) return NONE;
  return `${value > 0 ? "+" : ""}${minus(value.toFixed(4))} nats`;
}

/** "a to b" of a pair, by `how`. */
export function interval(pair, how = figure) {
  return pair ? `${how(pair[0])} to ${how(pair[1])}` : NONE;
}

/** An amount of money in the planner's own currency, which stands before it. */
export function money(value, currency = "$") {
  return known(value) ? minus(`${currency}${new Intl.NumberFormat("en", { maximumSignificantDigits: 3 }).format(value)}`) : NONE;
}

/** Seconds as 2 h 05 min, 12 min, 40 s. */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds >= 86_400) return `${figure(seconds / 86_400)} days`;
  if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} min`;
  return seconds >= 60 ? `${Math.floor(seconds / 60)} min` : `${Math.round(seconds)} s`;
}

export function bytes(value) {
  if (!known(value)) return NONE;
  const [step, unit] = value >= 2 ** 30 ? [2 ** 30, "GiB"] : value >= 2 ** 20 ? [2 ** 20, "MiB"] : [2 ** 10, "KiB"];
  return `${figure(value / step)} ${unit}`;
}

/** A time as the reader's own clock has it. */
export function time(iso) {
  if (!iso) return NONE;
  return new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" }).format(new Date(iso));
}

/** A time of day to the second, as the reader's own clock has it. */
export function clock(iso) {
  return iso ? new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" }).format(new Date(iso)) : NONE;
}

/** How long ago a time was; the service's clock may be a little ahead of the reader's. */
export function ago(iso, now = Date.now()) {
  return iso ? `${duration(Math.max(0, (now - new Date(iso)) / 1000))} ago` : NONE;
}

/**
 * A number as people type it: 7B, 1.5e12, 402,496, 2 T. NaN where it is none.
 */
export function parse(text) {
  const found = /^\s*([0-9][0-9_,]*\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*([kmbgt]?)\s*$/i.exec(String(text));
  if (!found) return NaN;
  const scale = { "": 1, k: 1e3, m: 1e6, b: 1e9, g: 1e9, t: 1e12 }[found[3].toLowerCase()];
  return Number(found[1].replace(/[_,]/g, "") + (found[2] ?? "")) * scale;
}
