// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Amounts and times in the reader's own way of writing them.

// money writes an amount of minor units: how many of them make one is the currency's affair.
export function money(minor, currency) {
  const format = new Intl.NumberFormat(undefined, { style: 'currency', currency });
  return format.format(minor / 10 ** format.resolvedOptions().maximumFractionDigits);
}

export function whole(n) { return new Intl.NumberFormat().format(n); }

export function when(iso) {
  return new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' }).format(new Date(iso));
}

// after writes a span of milliseconds.
export function after(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

export function inStock(n) {
  if (n <= 0) return 'Out of stock';
  return n < 10 ? `Only ${n} left` : `${whole(n)} in stock`;
}

// plain writes the spans in a program's text, such as 2.578552724s, without their fractions, the next whole one up.
export function plain(text) { return text.replace(/(\d+)\.\d+(m?s)\b/g, (_, n, unit) => Number(n) + 1 + unit); }

// sentence makes a sentence of a server's detail.
export function sentence(detail) {
  const text = plain(detail);
  const s = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(s) ? s : `${s}.`;
}
