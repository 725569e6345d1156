// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// A look behind the counter for operators, every second: services, outboxes, breakers, dead letters, sagas.

import { Problem, api, wait } from '../api.js';
import { $, part, set, stamp } from '../dom.js';
import { sentence, when } from '../format.js';
import { frame } from '../frame.js';
import { account, leaveToSignIn } from '../session.js';

const pause = $('pause');
const paused = () => pause.getAttribute('aria-pressed') === 'true';

async function show() {
  const status = $('status').value;
  const [services, outbox, breakers, dead, sagas] = await Promise.all([
    api('GET', '/ops/api/services'),
    api('GET', '/ops/api/outbox'),
    api('GET', '/ops/api/breakers'),
    api('GET', '/ops/api/dead-letters'),
    api('GET', `/ops/api/sagas${status && `?status=${status}`}`),
  ]);
  const boxes = new Map(outbox.items.map((o) => [o.service, o]));
  fill($('services'), services.items.map((s) => ({ ...boxes.get(s.service), ...s })), service);
  fill($('breakers'), breakers.items.flatMap((s) => s.items ?? []), breaker);
  const letters = dead.items.flatMap((s) => s.items ?? []);
  $('no-dead').hidden = letters.length > 0;
  $('dead-table').hidden = letters.length === 0;
  fill($('dead'), letters, (d) => stamp('dead-row', { consumer: d.consumer, message: `${d.message?.type ?? ''} ${d.message_id}`, reason: d.reason, attempts: d.attempts, at: when(d.at) }));
  fill($('sagas'), sagas.items, saga);
  $('all').hidden = false;
}

// service is a row; one that publishes nothing has no outbox.
function service({ service, ready, waiting = '–', parked = '–', oldest_seconds: oldest }) {
  const state = ready ? 'ready' : 'down';
  const node = stamp('service-row', { service, state, waiting, parked, oldest: oldest?.toFixed(1) ?? '–' });
  part(node, 'state').dataset.status = state;
  return node;
}

function breaker({ service, to, state, calls, failures, opened, refused }) {
  const node = stamp('breaker-row', { service, to, state, calls, failures, opened, refused });
  part(node, 'state').dataset.status = state;
  return node;
}

function saga(s) {
  const node = stamp('saga-row', { name: s.name, status: s.stuck ? 'stuck' : s.status, step: s.step ?? '', attempt: s.attempt || '', reason: s.stuck || s.reason || '', updated: when(s.updated) });
  const order = s.id.replace(/^cancel-/, '');
  part(node, 'order').textContent = `…${order.slice(-8)}`;
  part(node, 'order').href = `/orders/${order}`;
  part(node, 'status').dataset.status = s.stuck ? 'stuck' : s.status;
  return node;
}

// fill replaces the rows only if they differ, so that a selection or the focus survives the second.
function fill(list, items, row) {
  const signature = JSON.stringify(items);
  if (list.dataset.shown === signature) return;
  list.dataset.shown = signature;
  list.replaceChildren(...items.map(row));
}

async function run() {
  for (;;) {
    if (!paused() && !document.hidden) {
      try {
        await show();
        $('connection').hidden = true;
        set($('as-of'), `as of ${new Date().toLocaleTimeString()}`);
      } catch (err) {
        if (!(err instanceof Problem)) throw err;
        $('connection').hidden = false;
        set($('connection'), err.status === 403 ? 'This page is for operators: sign in with an operator’s account.' : sentence(err.message));
        if (err.status === 403) return;
      }
    }
    await wait(1000);
  }
}

if (account()) {
  frame();
  pause.addEventListener('click', () => {
    pause.setAttribute('aria-pressed', String(!paused()));
    pause.textContent = paused() ? 'Go on' : 'Pause';
  });
  $('filter').addEventListener('submit', (event) => event.preventDefault());
  run();
} else {
  leaveToSignIn();
}
