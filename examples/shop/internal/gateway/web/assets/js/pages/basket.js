// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { Problem, api } from '../api.js';
import { change, limits, lines, onBasket, remove, worth } from '../basket.js';
import { $, part, set, stamp } from '../dom.js';
import { draw } from '../drawing.js';
import { money } from '../format.js';
import { frame, say } from '../frame.js';

const rows = new Map(); // by product: its <li>, kept so that the focus stays while the numbers change

function show() {
  const all = lines();
  $('empty').hidden = all.length > 0;
  $('filled').hidden = all.length === 0;
  for (const [id, row] of rows) {
    if (all.some((l) => l.id === id)) continue;
    row.remove();
    rows.delete(id);
  }
  for (const line of all) {
    if (!rows.has(line.id)) {
      rows.set(line.id, newRow(line));
      $('lines').append(rows.get(line.id));
    }
    const row = rows.get(line.id);
    set(part(row, 'each'), `${money(line.price, line.currency)} each`);
    set(part(row, 'sum'), money(line.price * line.quantity, line.currency));
    const input = row.querySelector('input');
    if (input !== document.activeElement) input.value = line.quantity;
  }
  if (all.length) set($('total'), money(worth(all), all[0].currency));
}

function newRow(line) {
  const row = stamp('line', { name: line.name, label: `Quantity of ${line.name}`, removed: line.name });
  draw(row.querySelector('.picture'), line);
  part(row, 'name').href = `/products/${encodeURIComponent(line.id)}`;
  const input = row.querySelector('input');
  const error = part(row, 'error');
  error.id = `error-${line.id}`;
  input.setAttribute('aria-describedby', error.id);
  input.addEventListener('input', () => {
    const n = input.valueAsNumber;
    const sound = Number.isInteger(n) && n >= 1 && n <= limits.quantity;
    error.textContent = sound ? '' : `A whole number from 1 to ${limits.quantity}, please.`;
    input.setAttribute('aria-invalid', String(!sound));
    if (sound) change(line.id, { quantity: n });
  });
  input.addEventListener('blur', () => {
    error.textContent = '';
    input.removeAttribute('aria-invalid');
    show(); // what was not sound is forgotten
  });
  row.querySelector('button').addEventListener('click', () => {
    const next = (row.nextElementSibling ?? row.previousElementSibling)?.querySelector('button');
    remove(line.id);
    say(`${line.name} is out of your basket.`);
    (next ?? $('main')).focus();
  });
  return row;
}

// refresh asks for today's price of each line and says what has changed.
async function refresh(line) {
  const error = () => part(rows.get(line.id) ?? stamp('line'), 'error');
  try {
    const p = await api('GET', `/api/products/${encodeURIComponent(line.id)}`);
    if (p.price !== line.price) error().textContent = `The price was ${money(line.price, line.currency)} when you put it in.`;
    if (p.available < line.quantity) error().textContent = `Only ${p.available} in stock.`;
    if (p.price !== line.price || p.name !== line.name) change(line.id, { price: p.price, name: p.name });
  } catch (err) {
    if (!(err instanceof Problem)) throw err;
    if (err.status === 404) error().textContent = 'This is no longer sold; please remove it.';
  }
}

frame();
onBasket(show);
Promise.all(lines().map(refresh));
