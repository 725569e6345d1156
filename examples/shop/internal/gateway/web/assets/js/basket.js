// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The basket: lines of {id, name, category, price, currency, quantity} in localStorage, shared by all tabs
// of this browser. Its prices are for showing; the shop takes the order at its own.

const key = 'basket';
const changed = new EventTarget();

export const limits = { lines: 50, quantity: 100 }; // of one order

// onBasket calls fn now and after every change, also by another tab.
export function onBasket(fn) {
  changed.addEventListener('change', fn);
  addEventListener('storage', (e) => { if (e.key === key || e.key === null) fn(); });
  fn();
}

export function lines() {
  try {
    const stored = JSON.parse(localStorage.getItem(key));
    return Array.isArray(stored) ? stored.filter((l) => typeof l?.id === 'string' && l.quantity >= 1) : [];
  } catch {
    return [];
  }
}

export function pieces() { return lines().reduce((sum, l) => sum + l.quantity, 0); }

// worth is the total of some lines in minor units.
export function worth(some) { return some.reduce((sum, l) => sum + l.price * l.quantity, 0); }

// add puts pieces of a product into the basket and returns why not, if it cannot.
export function add({ id, name, category, price, currency }, quantity) {
  const all = lines();
  const line = all.find((l) => l.id === id);
  if ((line?.quantity ?? 0) + quantity > limits.quantity) return `One order takes at most ${limits.quantity} pieces of an article.`;
  if (!line && all.length === limits.lines) return `One order takes at most ${limits.lines} articles.`;
  if (line) Object.assign(line, { name, category, price, currency, quantity: line.quantity + quantity });
  else all.push({ id, name, category, price, currency, quantity });
  write(all);
  return '';
}

// change sets fields of one line.
export function change(id, fields) { write(lines().map((l) => (l.id === id ? { ...l, ...fields } : l))); }

export function remove(id) { write(lines().filter((l) => l.id !== id)); }

function write(all) {
  localStorage.setItem(key, JSON.stringify(all));
  changed.dispatchEvent(new Event('change'));
}
