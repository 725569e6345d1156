// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { Problem, api, wait } from '../api.js';
import { $, part, stamp } from '../dom.js';
import { money, sentence, when } from '../format.js';
import { frame } from '../frame.js';
import { account, leaveToSignIn } from '../session.js';

// show lists the orders, and again while one of them is not finished.
async function show() {
  for (;;) {
    try {
      const { items } = await api('GET', '/api/me/orders');
      $('orders').replaceChildren(...items.map(row));
      $('empty').hidden = items.length > 0;
      if (!items.some((o) => o.status === 'pending')) return;
    } catch (err) {
      if (!(err instanceof Problem)) throw err;
      $('empty').hidden = false;
      $('empty').textContent = sentence(err.message);
    } finally {
      $('orders').removeAttribute('aria-busy');
    }
    await wait(2000);
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

if (account()) {
  frame();
  show();
} else {
  leaveToSignIn();
}
