// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The overview of the console: map and charts; invariants, load and chaos beside them.

import { Problem, api, wait } from '../api.js';
import { Charts } from '../charts.js';
import { $, fill, part, set, stamp } from '../dom.js';
import { submitting } from '../fields.js';
import { sentence, whole } from '../format.js';
import { frame, say } from '../frame.js';
import { hear, hearAndAsk, hearTraffic, keep, listen } from '../live.js';
import { ServiceMap } from '../map.js';
import { operators } from '../operator.js';
import { clock, figure, perSecond, span } from '../units.js';

let paused = false;
let ahead = 0; // ms by which this computer's clock is ahead of the shop's

let map;
let charts;

function traffic(sample) {
  if (!sample.services) return; // nobody has looked yet
  ahead = Date.now() - Date.parse(sample.at);
  countDown();
  charts.add(sample);
  if (paused) return;
  map.show(sample);
  tables(sample);
  set($('as-of'), `as of ${clock(sample.at)}`);
}

function tables({ services, calls }) {
  fill($('services'), services, (s) => {
    const up = s.instances.filter((i) => i.up).length;
    const state = up === 0 ? 'down' : up < s.instances.length ? 'partly ready' : 'ready';
    const row = stamp('service-row', {
      service: s.service, state, instances: s.instances.map((i) => i.instance + (i.up ? '' : ' (down)')).join('\n') || '–',
      rate: figure(s.rate), errors: figure(s.errors), p50: span(s.p50_seconds), p99: span(s.p99_seconds), outbox: s.outbox ? whole(s.outbox.waiting) : '–',
    });
    part(row, 'state').dataset.status = state.replace(' ', '-');
    return row;
  }, (s) => s.service);
  fill($('calls'), calls, (c) => {
    const row = stamp('call-row', {
      from: c.from, to: c.to, state: c.breaker.state, rate: figure(c.rate), errors: figure(c.errors), p50: span(c.p50_seconds), p99: span(c.p99_seconds),
      opened: whole(c.breaker.opened), refused: whole(c.breaker.refused),
    });
    part(row, 'state').dataset.status = c.breaker.state;
    return row;
  }, (c) => `${c.from}>${c.to}`);
}

// Invariants

const fresh = 60_000; // ms for which an answer says something about now; a check takes its time

let checked; // the last answer

function invariants(answer) {
  checked = answer;
  const { resting, items } = answer;
  judge();
  set($('resting'), resting ? 'Nothing is under way.' : 'Something is under way, or was until just now; what is unfinished is no violation yet.');
  fill($('invariants'), items, (i) => {
    const row = stamp('invariant', { state: i.ok ? 'holds:' : 'broken:', name: sentence(i.name), checked: i.checked });
    row.dataset.ok = i.ok;
    row.querySelector('use').setAttribute('href', `/assets/icons.svg#${i.ok ? 'done' : 'refused'}`);
    part(row, 'violations').append(...(i.violations ?? []).slice(0, 5).map((text) => Object.assign(document.createElement('li'), { textContent: text })));
    return row;
  }, (i) => i.number);
}

// judge says what the last answer is worth: nobody knows that still holds what has not been looked at for long.
function judge() {
  if (!checked) return;
  const broken = checked.items.filter((i) => !i.ok).length;
  const old = Date.now() - ahead - Date.parse(checked.at) > fresh;
  set($('verdict'), broken ? `${broken} broken` : old ? 'not known' : 'all hold');
  $('verdict').dataset.status = broken ? 'down' : old ? 'unknown' : 'ready';
  set($('checked'), old ? `This was so at ${clock(checked.at)}, and has not been looked at since.` : '');
}

// Load

let wanted; // where the slider is, as long as the server does not know

function load(now) {
  for (const dd of $('load-figures').querySelectorAll('dd')) set(dd, whole(now[dd.dataset.is] ?? 0));
  if (wanted !== undefined || document.activeElement === $('rate')) return;
  if ($('rate').valueAsNumber !== now.rate) $('rate').value = now.rate;
  set($('rate-value'), figure(now.rate));
}

async function setLoad() {
  const telling = wanted !== undefined;
  wanted = $('rate').valueAsNumber;
  set($('rate-value'), figure(wanted));
  while (!telling && wanted !== undefined) {
    const rate = wanted;
    try {
      const now = await api('PUT', '/ops/api/load', { body: { rate } });
      if (wanted === rate) wanted = undefined;
      load(now);
    } catch (err) {
      if (!(err instanceof Problem)) throw err;
      say(err.words);
      if (err.unsure) await wait(1000);
      else wanted = undefined;
    }
  }
}

// Chaos

let kinds = [];
let instances = [];

function chaos(answer) {
  if (kinds.length === 0) {
    ({ kinds, instances } = answer);
    $('kind').append(...kinds.map((k) => new Option(k.title, k.kind)));
    chosen();
  }
  set($('no-faults'), 'Nothing.');
  $('no-faults').hidden = answer.faults.length > 0;
  $('end-all').hidden = answer.faults.length < 2;
  fill($('faults'), answer.faults, (f) => {
    const what = [kinds.find((k) => k.kind === f.kind)?.title ?? f.kind, f.service, amountOf(f)].filter(Boolean).join(' · ');
    const row = stamp('fault', { what, end: 'End' });
    row.dataset.ends = f.ends_at;
    part(row, 'end').setAttribute('aria-label', `End: ${what}`);
    part(row, 'end').addEventListener('click', () => end(`/ops/api/chaos/${f.id}`));
    return row;
  }, (f) => f.id);
  countDown();
}

function countDown() {
  for (const row of $('faults').children) {
    const left = Math.max(0, Math.ceil((Date.parse(row.dataset.ends) + ahead - Date.now()) / 1000));
    set(part(row, 'left'), left ? `${left} s left` : 'ending');
  }
}

function amountOf({ kind, amount }) {
  const unit = kinds.find((k) => k.kind === kind)?.amount?.unit;
  return unit && amount ? `${amount} ${unit === 'percent' ? '%' : unit}` : '';
}

function chosen() {
  const kind = kinds.find((k) => k.kind === $('kind').value);
  const service = $('service').value;
  $('service-field').hidden = kind.target !== 'service';
  const choice = kind.services.flatMap((s) => {
    const own = instances.filter((i) => i.replace(/-\d+$/, '') === s);
    return own.length > 1 ? [s, ...own] : [s];
  });
  const before = choice.includes(service) ? service : 'payment';
  $('service').replaceChildren(...choice.map((s) => new Option(s, s, false, s === before)));
  $('amount-field').hidden = !kind.amount;
  if (kind.amount) {
    set($('unit'), `, ${kind.amount.unit === 'percent' ? '%' : kind.amount.unit}`);
    Object.assign($('amount'), { min: kind.amount.min, max: kind.amount.max, value: kind.amount.default });
  }
  Object.assign($('seconds'), { max: kind.seconds.max, value: kind.seconds.default });
}

async function begin() {
  const kind = kinds.find((k) => k.kind === $('kind').value);
  await api('POST', '/ops/api/chaos', {
    body: {
      kind: kind.kind, seconds: Number($('seconds').value),
      ...(kind.target === 'service' && { service: $('service').value }), ...(kind.amount && { amount: Number($('amount').value) }),
    },
  });
  look();
}

async function end(path) {
  try {
    await api('DELETE', path);
  } catch (err) {
    if (!(err instanceof Problem)) throw err;
    if (err.status !== 404) say(err.words); // otherwise it has ended by itself
  }
  look();
}

// What the stream brings later is there at once, and without a stream now and then. Where nobody controls the whole shop
// the page says so instead.

let look = () => {};

async function desk(parts) {
  try {
    for (const ask of parts) await ask();
  } catch (err) {
    if (err.status !== 404) throw err;
    for (const sheet of document.querySelectorAll('.desk')) sheet.hidden = true;
    set($('no-desk-why'), err.words);
    $('no-desk').hidden = false;
  }
}

if (operators()) {
  frame();
  map = new ServiceMap($('map'));
  charts = new Charts($('charts'));
  $('pause').addEventListener('click', () => {
    paused = map.still = charts.still = !paused;
    set($('pause'), paused ? 'Go on' : 'Pause');
  });
  $('rate').addEventListener('input', setLoad);
  $('kind').addEventListener('change', chosen);
  submitting($('chaos'), begin);
  $('end-all').addEventListener('click', () => end('/ops/api/chaos'));
  hear('past', (moments) => charts.past(moments));
  hearTraffic(traffic);
  const parts = [hearAndAsk('faults', '/ops/api/chaos', chaos), hearAndAsk('load', '/ops/api/load', load), hearAndAsk('invariants', '/ops/api/invariants', invariants)];
  look = keep(() => desk(parts));
  setInterval(judge, 5000);
  listen();
}
