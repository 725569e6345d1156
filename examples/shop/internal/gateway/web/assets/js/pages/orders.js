// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { Problem, api, wait } from '../api.js';
import { $, fill, part, set, stamp } from '../dom.js';
import { money, when } from '../format.js';
import { customers } from '../frame.js';

const seconds = { pending: 2, confirmed: 10 }; // between two looks, while an order of this status goes on

// show lists the orders, and again while one of them is not finished.
async function show() {
  for (;;) {
    let pause = seconds.pending;
    try {
      const { items } = await api('GET', '/api/me/orders');
      fill($('orders'), items, row, (o) => o.id);
      set($('problem'), '');
      $('empty').hidden = items.length > 0;
      pause = Math.min(...items.map((o) => seconds[o.status] ?? Infinity));
    } catch (err) {
      if (!(err instanceof Problem)) throw err;
      set($('problem'), `${err.words} Trying again …`);
    } finally {
      $('orders').removeAttribute('aria-busy');
    }
    if (pause === Infinity) return;
    do await wait(1000 * pause); while (document.hidden);
  }
}

function row(o) {
  const [first, ...others] = o.items;
  const what = others.length ? `${first.name} and ${others.length} more` : first.name;
  const node = stamp('order', { what, when: when(o.created_at), total: money(o.total, o.currency), status: o.status });
  part(node, 'what').href = `/orders/${o.id}`;
  part(node, 'status').dataset.status = o.status;
  return node;
}

if (customers()) show();
