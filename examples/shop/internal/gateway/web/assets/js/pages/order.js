// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// One order, live: what its saga does is shown while it happens.

import { Problem, api, wait } from '../api.js';
import { $, part, set, stamp } from '../dom.js';
import { after, money, plain, sentence, when } from '../format.js';
import { frame } from '../frame.js';
import { cancelling, fold, inWords, placing } from '../plan.js';
import { account, leaveToSignIn } from '../session.js';
import { follow } from '../stream.js';

const id = location.pathname.split('/').pop();
const path = `/api/orders/${id}`;
const linger = 2000; // ms after the end: the last steps and the mail come after the status

let moments = [];
let order; // as last heard
let heard = performance.now(); // when the last news came
let asked = false; // for cancellation
let followed; // the AbortController of the running stream

// plan puts a list of steps on the page and returns [step, row] for each.
function plan(list, steps) {
  return steps.map((s) => {
    if (s.pivot) list.append(stamp('pivot'));
    const row = stamp('step', { title: s.title, who: s.who });
    list.append(row);
    return [s, row];
  });
}

const placed = plan($('steps'), placing);
const cancelled = plan($('cancel-steps'), cancelling);

const ended = () => order && ['rejected', 'cancelled'].includes(order.status);
const gone = () => order?.status === 'dispatched';
const settled = () => ended() || (gone() && fold(moments).get('settle-credit')?.state === 'done');
const takingBack = () => order?.status !== 'cancelled' && !gone() && (asked || moments.some((m) => m.what.startsWith('await-confirmed')));

function show() {
  if (!order) return;
  const steps = fold(moments);
  const stopped = ended() || [...steps].some(([name, s]) => s.state === 'refused' || name.startsWith('undo '));
  showSteps(placed, steps, stopped);
  $('cancelling').hidden = !(takingBack() && order.status === 'confirmed') && !cancelling.some((s) => steps.has(s.step));
  showSteps(cancelled, steps, ended());

  $('known').hidden = $('status').hidden = false;
  set($('status'), order.status);
  $('status').dataset.status = order.status;
  set($('reason'), order.reason ? sentence(inWords(order.reason)) : '');
  $('cancel').disabled = ended() || gone() || takingBack();
  set($('cancel'), takingBack() && !ended() ? 'Cancelling …' : 'Cancel the order');
}

// showSteps writes what became of each step. The first that is not done is at work, unless everything
// has stopped: then what was done is given back, the last of it first.
function showSteps(some, steps, stopped) {
  const undone = (s) => steps.get(`undo ${s.step}`);
  const givingBack = stopped && !ended() ? some.findLast(([s]) => s.undo && steps.has(s.step) && undone(s)?.state !== 'done')?.[0] : null;
  let atWork = !stopped;
  for (const [def, row] of some) {
    const s = steps.get(def.step);
    let state = s?.state ?? 'waiting';
    if (atWork && state !== 'done') {
      state = state === 'failed' ? 'again' : 'working';
      atWork = false;
    } else if (stopped) {
      if (!s) state = 'skipped';
      else if (undone(def)?.state === 'done' && state !== 'refused') state = 'undone';
    }
    row.dataset.state = state;
    row.querySelector('use').setAttribute('href', `/assets/icons.svg#${state}`);
    set(part(row, 'state'), words(state, s));
    set(part(row, 'when'), s ? `after ${since(s.at)}` : '');
    set(part(row, 'undo'), state === 'refused' && undone(def)?.state === 'done' ? '' : undoing(def, undone(def), def === givingBack)); // nothing was done
  }
}

const since = (at) => after(Date.parse(at) - Date.parse(order.created_at));

function undoing(def, u, now) {
  if (u?.state === 'done') return `· ${def.undo} after ${since(u.at)}`;
  if (u) return `· ${def.undo}: attempt ${u.tries} failed, trying again …`;
  return now ? `· ${def.undo} …` : '';
}

function words(state, s) {
  switch (state) {
    case 'undone': return words(s.state, s); // what it was before
    case 'done': return s.tries > 1 ? `done at the ${ordinal(s.tries)} attempt` : 'done';
    case 'working': return 'at work …';
    case 'again': return `attempt ${s.tries} failed, trying again …`;
    case 'refused': return 'refused';
    case 'failed': return `failed ${s.tries === 1 ? 'once' : `${s.tries} times`}`;
    case 'skipped': return 'not reached';
    default: return 'to come';
  }
}

function ordinal(n) {
  const ending = new Intl.PluralRules('en', { type: 'ordinal' }).select(n);
  return n + { one: 'st', two: 'nd', few: 'rd', other: 'th' }[ending];
}

function showMoments() {
  if (!order) return;
  set($('moment-count'), String(moments.length));
  $('moments').replaceChildren(...moments.map((m) => stamp('moment', { after: since(m.at), what: m.what, detail: plain(m.detail ?? '') })));
}

function showOnce() {
  set($('placed'), `Placed ${when(order.created_at)},`);
  set($('id'), order.id);
  $('lines').replaceChildren(...order.items.map((l) => stamp('line', { name: `${l.quantity} × ${l.name}`, sum: money(l.price * l.quantity, order.currency) })));
  set($('total'), money(order.total, order.currency));
  set($('method'), order.payment_method);
}

// showRest asks for what other services know of the order.
async function showRest() {
  try {
    const whole = await api('GET', path);
    if (whole.partial?.includes('payment')) set($('payment'), whole.payment_status ? `${whole.payment_status}, as the payment service said last` : 'not known: the payment service does not answer');
    else set($('payment'), whole.payment ? whole.payment.status : whole.status === 'pending' ? 'not asked yet' : 'not asked for');
    if (whole.partial?.includes('shipment')) set($('shipment'), 'not known: the shipping service does not answer');
    else set($('shipment'), whole.shipment ? [whole.shipment.status, whole.shipment.recipient && `to ${whole.shipment.recipient}`, whole.shipment.tracking].filter(Boolean).join(', ') : ['rejected', 'cancelled'].includes(whole.status) ? 'nothing to send' : 'not packed yet');
    if (account().role !== 'customer') return;
    const { items } = await api('GET', '/api/me/mails');
    const about = items.filter((m) => m.body.includes(id));
    $('post').hidden = !about.length;
    $('mails').replaceChildren(...about.map((m) => stamp('mail', { subject: m.subject, when: when(m.at) })));
  } catch (err) {
    if (!(err instanceof Problem)) throw err; // the stream tells what matters
  }
}

// What others make of a new status, such as the mail about it, follows a moment later.
const laterLooks = [0.5, 2, 5, 15];

function hear({ name, data }) {
  heard = performance.now();
  $('connection').hidden = true;
  switch (name) {
    case 'open':
      moments = []; // each connection tells everything from the beginning
      return;
    case 'moment':
      moments.push(JSON.parse(data));
      break;
    case 'status': {
      const first = !order;
      order = JSON.parse(data);
      if (first) showOnce();
      if (order.status === 'cancelled' || gone()) asked = false;
      showRest();
      for (const seconds of laterLooks) setTimeout(showRest, 1000 * seconds);
      break;
    }
  }
  requestAnimationFrame(() => { show(); showMoments(); });
}

// watch follows the order until everything about it is settled.
async function watch() {
  followed?.abort();
  const stream = followed = new AbortController();
  heard = performance.now();
  const quiet = setInterval(() => {
    if (settled() && performance.now() - heard > linger) stream.abort();
  }, 250);
  try {
    await follow(`${path}/events`, {
      signal: stream.signal,
      on: hear,
      lost() {
        $('connection').hidden = false;
        set($('connection'), 'The connection is lost. What the shop has accepted it will finish; connecting again …');
      },
    });
    if (followed === stream) await showRest();
  } catch (err) {
    if (!(err instanceof Problem)) throw err;
    $('connection').hidden = false;
    set($('connection'), err.status === 404 ? 'There is no such order among yours.' : err.words);
  } finally {
    clearInterval(quiet);
  }
}

// cancel asks for the end of the order until an answer is sure. An order is cancelled once, so
// the attempt needs no other key than this.
async function cancel() {
  asked = true;
  set($('refused'), '');
  show();
  watch();
  for (let n = 1; ; n++) {
    try {
      await api('POST', `${path}/cancel`, { headers: { 'Idempotency-Key': 'cancel-by-customer' } });
      return;
    } catch (err) {
      if (!(err instanceof Problem)) throw err;
      if (!err.unsure || n === 5) {
        asked = false;
        show();
        set($('refused'), err.words);
        return;
      }
      await wait(1000 * Math.max(err.retryAfter, n));
    }
  }
}

if (account()) {
  frame();
  if (account().role !== 'customer') { // who looks at somebody's order; what staff decides is decided on the saga's page
    set(document.querySelector('h1'), 'Order');
    Object.assign(document.querySelector('.back a'), { href: `/ops/sagas/${id}`, textContent: 'Its saga' });
    document.querySelector('.back').hidden = account().role !== 'operator';
    $('cancel').hidden = true;
  }
  $('cancel').addEventListener('click', () => {
    $('sure').returnValue = ''; // of the time before, which Escape leaves as it is
    $('sure').showModal();
  });
  $('sure').addEventListener('close', () => { if ($('sure').returnValue === 'cancel') cancel(); });
  addEventListener('pagehide', () => followed?.abort());
  addEventListener('pageshow', (event) => { if (event.persisted && !settled()) watch(); });
  watch();
} else {
  leaveToSignIn();
}
