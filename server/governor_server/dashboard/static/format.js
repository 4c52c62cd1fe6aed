// Figures for people, in their own language's signs.

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));
export const short = (value) => (Math.abs(value) < 10000 ? whole.format(value) : compact.format(value));

export function percent(share, digits = 1) {
  if (share === null || share === undefined || !Number.isFinite(share)) return "–";
  return new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: digits, minimumFractionDigits: share && Math.abs(share) < 1 ? digits : 0 }).format(share);
}

export function number(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat(undefined, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

export function signed(value, digits = 2) {
  return new Intl.NumberFormat(undefined, { maximumFractionDigits: digits, minimumFractionDigits: digits, signDisplay: "exceptZero" }).format(value);
}

export const nats = (value) => (value === null || value === undefined ? "–" : `${number(value, 2)} nats`);

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 s";
  if (Math.abs(value) < 0.001) return `${number(value * 1e6, 0)} µs`;
  if (Math.abs(value) < 1) return `${number(value * 1000, Math.abs(value) < 0.01 ? 2 : 0)} ms`;
  if (Math.abs(value) < 120) return `${number(value, 1)} s`;
  if (Math.abs(value) < 7200) return `${number(value / 60, 1)} min`;
  return `${number(value / 3600, 1)} h`;
}

export function money(value, currency) {
  if (value === null || value === undefined) return "–";
  const digits = value && Math.abs(value) < 0.1 ? 5 : 2;
  try {
    return new Intl.NumberFormat(undefined, { style: "currency", currency, minimumFractionDigits: 2, maximumFractionDigits: digits }).format(value);
  } catch {
    return `${number(value, digits)} ${currency}`;
  }
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minutes = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const both = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const time = (moment) => clock.format(new Date(moment * 1000));
export const moment = (at) => both.format(new Date(at * 1000));
export const hour = (at) => minutes.format(new Date(at * 1000));
export const day = (at) => date.format(new Date(at * 1000));

/** How long ago, in a word or two. */
export function ago(at, now) {
  const passed = Math.max(0, now - at);
  if (passed < 2) return "just now";
  if (passed < 90) return `${Math.round(passed)} s ago`;
  if (passed < 5400) return `${Math.round(passed / 60)} min ago`;
  if (passed < 129600) return `${Math.round(passed / 3600)} h ago`;
  return `${Math.round(passed / 86400)} d ago`;
}

/** `low_value` → `low value`. */
export const words = (name) => String(name ?? "").replaceAll("_", " ");
