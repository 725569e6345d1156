// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Figures as operators read them: short, with their unit.

export function figure(n) {
  if (n < 0.1 && n > 0) return n.toPrecision(1);
  if (n < 10 && !Number.isInteger(n)) return n.toFixed(1);
  return new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 }).format(n);
}

export function perSecond(n) { return `${figure(n)}/s`; }

// span writes seconds.
export function span(s) {
  if (!s) return '–';
  if (s < 0.001) return `${Math.round(s * 1e6)} µs`;
  if (s < 0.01) return `${(s * 1000).toFixed(1)} ms`;
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 60) return `${s.toFixed(1)} s`;
  return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

// clock writes a time to the second or, for what follows close upon another, to the millisecond, and of another day its date.
export function clock(iso, fine) {
  const at = new Date(iso);
  const today = at.toDateString() === new Date().toDateString();
  return at.toLocaleString(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23', ...(fine && { fractionalSecondDigits: 3 }), ...(!today && { day: 'numeric', month: 'short' }) });
}
