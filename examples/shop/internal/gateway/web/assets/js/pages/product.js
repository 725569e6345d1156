// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { Problem, api, persist } from '../api.js';
import { add, limits } from '../basket.js';
import { $, set } from '../dom.js';
import { draw } from '../drawing.js';
import { submitting } from '../fields.js';
import { inStock, money } from '../format.js';
import { frame, say } from '../frame.js';

async function show() {
  const id = location.pathname.split('/').pop();
  let p;
  try {
    p = await persist(() => api('GET', `/api/products/${id}`), (text) => {
      $('product').removeAttribute('aria-busy');
      $('add').hidden = true;
      set($('problem'), text);
    });
  } catch (err) {
    if (!(err instanceof Problem)) throw err;
    $('name').textContent = 'There is no such product';
    $('add').hidden = true;
    set($('problem'), err.status === 404 ? '' : err.words);
    return;
  } finally {
    $('product').removeAttribute('aria-busy');
  }
  set($('problem'), '');
  $('add').hidden = false;
  document.title = `${p.name} · Dovetail`;
  $('name').textContent = p.name;
  $('category').textContent = p.category;
  $('category').href = `/?${new URLSearchParams({ category: p.category })}`;
  $('price').textContent = money(p.price, p.currency);
  $('stock').textContent = inStock(p.available);
  $('stock').classList.toggle('low', p.available < 10);
  draw(document.querySelector('.picture'), p);
  $('add').querySelector('button').disabled = p.available <= 0;
  submitting($('add'), async ({ quantity }) => {
    const n = Number(quantity);
    if (!Number.isInteger(n) || n < 1 || n > limits.quantity) {
      throw new Problem(422, { field: 'quantity', detail: `Please enter a whole number from 1 to ${limits.quantity}.` });
    }
    const why = add(p, n);
    if (why) throw new Problem(422, { field: 'quantity', detail: why });
    say(`${n === 1 ? 'One piece is' : `${n} pieces are`} in your basket.`);
  });
}

frame();
show();
