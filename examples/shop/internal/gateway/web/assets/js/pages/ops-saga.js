// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// One saga: its plan as a diagram, its history as a timeline, and what an operator can do about it.

import { api } from '../api.js';
import { bar } from '../bars.js';
import { $, fill, part, set, stamp } from '../dom.js';
import { sentence, when } from '../format.js';
import { frame, say } from '../frame.js';
import { keep, listen } from '../live.js';
import { decide, operators } from '../operator.js';
import { drawPlan } from '../plan-drawing.js';
import { account } from '../session.js';
import { clock, span } from '../units.js';

const id = decodeURIComponent(location.pathname.split('/').pop());
const order = id.replace(/^cancel-/, '');

async function look() {
  const { saga, steps, history, data } = await api('GET', `/ops/api/sagas/${encodeURIComponent(id)}`, { once: true });
  const status = saga.stuck ? 'stuck' : saga.status;
  const over = saga.status === 'completed' || saga.status === 'compensated';
  $('known').hidden = $('status').hidden = false;
  set($('name'), saga.name);
  set($('status'), status);
  $('status').dataset.status = status;
  set($('reason'), saga.stuck || saga.reason ? sentence(saga.stuck || saga.reason) : '');
  set($('created'), `${when(saga.created)}, version ${saga.version} of the plan`);
  set($('now'), over ? `ended ${clock(saga.updated)}` : [saga.step && `at ${saga.step}`, saga.attempt && `after ${saga.attempt} failed ${saga.attempt === 1 ? 'attempt' : 'attempts'}`, saga.owner && `on ${saga.owner}`].filter(Boolean).join(', ') || 'about to begin');

  const past = steps.findIndex((s) => s.name === saga.step) >= steps.findIndex((s) => s.pivot) && history.some((e) => e.op === 'do' && steps.find((s) => s.name === e.step)?.pivot);
  $('retry').disabled = $('skip').disabled = !saga.stuck;
  $('cancel').disabled = over || past || saga.status === 'compensating';
  set($('verbs-note'), over ? 'It has ended: there is nothing to decide.' : saga.parked ? 'It waits for a decision.' : saga.stuck ? 'It has failed often. It goes on trying by itself, and waits for your decision no less.' : past ? 'It is past its pivot: it goes on until everything is done.' : 'It goes on by itself; until its pivot it can be compensated.');

  fill($('plan'), [{ saga: [saga.status, saga.step, saga.stuck], steps, history }], () => drawPlan(saga, steps, history));
  const begun = Date.parse(saga.created);
  const all = Math.max(1, ...history.map((e) => Date.parse(e.at) - begun));
  set($('until'), span(all / 1000));
  fill($('history'), history, (e) => entry(e, begun, all));
  set($('data'), JSON.stringify(data, null, 2));
}

function entry(e, begun, all) {
  const took = e.took_seconds * 1000;
  const what = e.step ? (e.op === 'do' ? e.step : `${e.op} ${e.step}`) : e.op;
  const how = [e.outcome, e.attempt > 1 && `attempt ${e.attempt}`, e.who && `by ${e.who === account()?.id ? 'you, ' : ''}${e.who}`, clock(e.at, true), e.node && `on ${e.node}`].filter(Boolean).join(' · ');
  const node = stamp('entry', { what, how, text: e.text ? sentence(e.text) : '', took: took ? span(e.took_seconds) : '' });
  part(node, 'text').className = ['failed', 'refused'].includes(e.outcome) ? 'error' : 'said';
  part(node, 'bar').append(bar(Math.max(0, Date.parse(e.at) - begun - took), took, all, { 'data-op': e.op, 'data-outcome': e.outcome }));
  return node;
}

if (operators()) {
  frame();
  document.querySelector('.tabs a[href="/ops/sagas"]').setAttribute('aria-current', 'page');
  set($('id'), id);
  $('to-order').href = `/orders/${encodeURIComponent(order)}`;
  $('to-trace').href = `/ops/traces?order=${encodeURIComponent(order)}`;
  $('to-events').href = `/ops/messages?order=${encodeURIComponent(order)}`;
  const now = keep(look, 'changed');
  listen();
  for (const [verb, title, what, done] of [
    ['retry', 'Retry', 'The current step is tried again at once.', 'It tries again.'],
    ['skip', 'Skip this step', 'The current step counts as done, because somebody has done it by hand or can do without.', 'The step counts as done.'],
    ['cancel', 'Compensate', 'What was done is undone, the last of it first.', 'It compensates.'],
  ]) {
    $(verb).addEventListener('click', async () => {
      await decide(`/ops/api/sagas/${encodeURIComponent(id)}/${verb}`, title, what);
      say(done);
      now();
    });
  }
}
