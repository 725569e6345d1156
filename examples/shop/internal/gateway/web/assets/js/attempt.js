// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// An attempt to order: the Idempotency-Key and the exact body that goes with it, kept in localStorage
// from before the first request until the answer has come. Whoever finds one there, after a reload
// or in another tab, repeats it instead of making a second order.

import { Problem, api, wait } from './api.js';
import { account } from './session.js';

const name = 'attempt';
const lifetime = 12 * 3600 * 1000; // well within the time that the shop remembers a key
const tries = 6;

// pending returns the attempt that has no answer yet, or null. It is only its own account's.
export function pending() {
  try {
    const attempt = JSON.parse(localStorage.getItem(name));
    if (attempt && attempt.account === account()?.id && Date.now() - attempt.at < lifetime) return attempt;
  } catch { /* nothing that can be repeated */ }
  return null;
}

// begin returns the pending attempt, or a new one to order these lines.
export function begin(lines, method) {
  const already = pending();
  if (already) return already;
  const items = lines.map((l) => ({ product_id: l.id, quantity: l.quantity }));
  const attempt = { key: newKey(), account: account()?.id, at: Date.now(), lines, method, body: JSON.stringify({ items, payment_method: method }) };
  localStorage.setItem(name, JSON.stringify(attempt));
  return attempt;
}

// finish repeats an attempt until its answer is sure: the order, or a Problem. While the
// answer is unsure it tells so and keeps the attempt.
export async function finish(attempt, tell) {
  for (let n = 1; ; n++) {
    try {
      const order = await api('POST', '/api/orders', { body: attempt.body, headers: { 'Idempotency-Key': attempt.key } });
      forget(attempt);
      return order;
    } catch (err) {
      if (!(err instanceof Problem) || !err.unsure) {
        forget(attempt);
        throw err;
      }
      if (n === tries) throw err;
      tell(`${err.words} Asking again with the same key (${n + 1} of ${tries}) …`);
      await wait(1000 * Math.max(err.retryAfter, 2 ** (n - 1) / 2));
    }
  }
}

function forget(attempt) {
  if (pending()?.key === attempt.key) localStorage.removeItem(name);
}

// newKey is 128 random bits. crypto.randomUUID would need https.
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, '0')).join('');
}
