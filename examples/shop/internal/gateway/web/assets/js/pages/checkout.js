// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { Problem, api } from '../api.js';
import { begin, finish, pending } from '../attempt.js';
import { lines, remove, worth } from '../basket.js';
import { $, part, set, stamp } from '../dom.js';
import { clearProblem, showProblem } from '../fields.js';
import { money } from '../format.js';
import { customers } from '../frame.js';

const form = $('form');
const button = $('place');
let ordered = []; // the lines on the page

function show(some) {
  ordered = some;
  $('empty').hidden = some.length > 0;
  form.hidden = some.length === 0;
  $('lines').replaceChildren(...some.map((l) => stamp('line', { name: `${l.quantity} × ${l.name}`, sum: money(l.price * l.quantity, l.currency) })));
  if (some.length) $('total').textContent = money(worth(some), some[0].currency);
}

// place makes an attempt, or goes on with the one that has no answer yet, and ends at the order.
async function place() {
  if (button.getAttribute('aria-disabled') === 'true') return;
  button.setAttribute('aria-disabled', 'true');
  clearProblem(form);
  try {
    const attempt = begin(ordered, new FormData(form).get('payment_method'));
    show(attempt.lines);
    form.elements.payment_method.value = attempt.method;
    set($('progress'), 'Sending your order …');
    const { id } = await finish(attempt, (text) => set($('progress'), text));
    attempt.lines.forEach((l) => remove(l.id)); // what was put in meanwhile stays
    location.replace(`/orders/${id}`);
  } catch (err) {
    button.removeAttribute('aria-disabled');
    if (!(err instanceof Problem)) throw err;
    if (err.unsure) {
      set($('progress'), `${err.words} Your order may have been taken or not: ask again, it will not be made twice.`);
      button.textContent = 'Ask again';
      return;
    }
    set($('progress'), '');
    showProblemAt(err);
  }
}

// showProblemAt finds the line for "items[2].quantity"; any other field is the form's affair.
function showProblemAt(err) {
  const n = /^items\[(\d+)\]/.exec(err.field ?? '')?.[1];
  const row = n && $('lines').children[n];
  if (!row) return showProblem(form, err);
  part(row, 'error').textContent = err.words;
  row.tabIndex = -1;
  row.focus();
}

async function showCredit() {
  try {
    const me = await api('GET', '/api/me');
    const free = me.credit_limit - me.credit_reserved;
    const text = `Your free credit for orders in flight is ${money(free, me.currency)}.`;
    set($('credit'), worth(ordered) > free ? `${text} This order is above it, so it will be rejected.` : text);
  } catch (err) {
    if (!(err instanceof Problem)) throw err;
  }
}

if (customers()) {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    place();
  });
  const attempt = pending();
  show(attempt?.lines ?? lines());
  if (attempt) place(); // this page was left before the answer came
  else showCredit();
}
