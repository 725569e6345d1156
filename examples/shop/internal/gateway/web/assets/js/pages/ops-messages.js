// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// What services tell each other: what waits, what could not be told or understood, and what was told about orders.

import { Problem, api } from '../api.js';
import { $, fill, part, set, stamp } from '../dom.js';
import { sentence, when, whole } from '../format.js';
import { frame, say } from '../frame.js';
import { hearTraffic, keep, listen } from '../live.js';
import { decide, operators } from '../operator.js';
import { clock, figure, span } from '../units.js';

// tables shows what the stream brings.
function tables({ services, flows, groups, readers }) {
  if (!services) return; // nobody has looked yet
  fill($('boxes'), services.filter((s) => s.outbox), ({ service, outbox }) => stamp('box-row', {
    service, waiting: whole(outbox.waiting), oldest: span(outbox.oldest_seconds), parked: whole(outbox.parked), dead: whole(outbox.dead_letters),
  }), (box) => box.service);
  fill($('groups'), groups, (g) => {
    const row = stamp('group-row', {
      group: g.group, behind: whole(g.behind) + (g.known ? '' : ' or more'), oldest: g.behind ? span(g.oldest_seconds) : '–', delay: span(g.delay_seconds),
      consumers: g.known ? whole(g.consumers) : '–',
    });
    row.dataset.state = g.known && g.consumers === 0 ? 'nobody' : g.behind > 0 && g.oldest_seconds > stuck ? 'behind' : 'well';
    return row;
  }, (g) => g.group);
  const silent = new Set(services.filter((s) => !s.instances.some((i) => i.up)).map((s) => s.service));
  fill($('readers'), readers.map((r) => (silent.has(r.service) ? { ...r, status: 'no answer', end: 0 } : r)), (r) => {
    const row = stamp('reader-row', {
      stream: `${r.stream} (${r.service})`, reader: r.reader, status: r.status, position: r.position < 0 ? '–' : whole(r.position) + (r.end ? ` of ${whole(r.end)}` : ''),
      applied: r.applied ? whole(r.applied) : '–', behind: behind(r, readers), note: r.note ? sentence(`differs: ${r.note}`) : '',
    });
    part(row, 'status').dataset.status = r.status === 'no answer' ? 'down' : r.status;
    return row;
  }, (r) => `${r.service} ${r.stream} ${r.reader}`);
  $('rebuild').disabled = !readers.some((r) => r.service === 'reporting') || readers.some((r) => r.service === 'reporting' && r.status === 'building');
  const sorted = flows.toSorted((a, b) => a.topic.localeCompare(b.topic) || Number(Boolean(a.group)) - Number(Boolean(b.group)) || a.service.localeCompare(b.service));
  fill($('flows'), sorted, (f) => stamp('flow-row', {
    topic: f.topic, service: f.service, does: f.group ? `hears, as ${f.group}` : 'says', rate: figure(f.rate), failed: f.group ? figure(f.failed) : '–', messages: whole(f.messages),
  }), (f) => `${f.topic} ${f.service} ${f.group}`);
  ready('tables');
}

const stuck = 10; // seconds after which what waits catches the eye

// behind says how far a reader is behind: in events or time, or behind the one that serves.
function behind({ service, status, position, end, applied, behind_seconds: seconds }, readers) {
  if (end) return seconds ? `${whole(end - position)}, ${span(seconds)}` : 'nothing';
  const serves = readers.find((r) => r.service === service && r.status === 'serving');
  return status === 'building' && serves ? `${whole(Math.max(0, serves.applied - (applied ?? 0)))} than the one that serves` : '–';
}

async function rebuild() {
  $('rebuild').disabled = true;
  try {
    await api('POST', '/ops/api/reporting/rebuild');
    say('The figures are counted anew, beside those that serve.');
  } catch (err) {
    if (!(err instanceof Problem)) throw err;
    $('rebuild').disabled = false;
    say(err.words);
  }
}

async function waiting() {
  const [dead, parked] = await Promise.all([api('GET', '/ops/api/dead-letters', { once: true }), api('GET', '/ops/api/parked', { once: true })]).finally(() => ready('letters'));
  // Of a service that does not answer nobody knows that it has none.
  const silent = [...new Set([...dead.items, ...parked.items].filter((s) => s.error).map((s) => s.service))];
  set($('silent'), silent.length ? `No answer from ${silent.join(', ')}: what could not be told or understood there is not listed.` : '');
  $('silent').hidden = silent.length === 0;
  letters('dead', dead.items.flatMap((s) => s.items ?? []), (d) => ({
    what: `${d.message?.Type || 'message'} for ${d.consumer}`, again: 'Replay', reason: sentence(d.reason),
    when: `${d.message_id} · given up ${when(d.at)} after ${d.attempts} ${d.attempts === 1 ? 'attempt' : 'attempts'}`,
    path: `/ops/api/dead-letters/${encodeURIComponent(d.consumer)}/${encodeURIComponent(d.message_id)}/replay`, done: 'The consumer has dealt with it.',
  }));
  letters('parked', parked.items.flatMap((s) => s.items ?? []), (p) => ({
    what: `${p.message?.Type || 'message'} of ${p.service}`, again: 'Publish again', reason: sentence(p.reason),
    when: `${p.message_id} · parked ${when(p.since)} after ${p.attempts} ${p.attempts === 1 ? 'attempt' : 'attempts'}${p.blocks ? '; later messages of its key wait for it' : ''}`,
    path: `${pathOf(p)}/retry`, done: 'It waits to be published.',
    giveUp: { path: `${pathOf(p)}/discard`, what: `It will never be published${p.blocks ? ', and what waits behind it goes on without it' : ''}. Who should have heard it never will.` },
  }));
  const discarded = parked.items.flatMap((s) => s.discarded ?? []);
  $('discarded-title').hidden = discarded.length === 0;
  letters('discarded', discarded, (p) => ({
    what: `${p.message?.Type || 'message'} of ${p.service}`, reason: `${sentence(p.why)} It could not be published: ${p.reason}`,
    when: `${p.message_id} · given up ${when(p.discarded)}`,
  }));
}

const pathOf = (p) => `/ops/api/parked/${encodeURIComponent(p.service)}/${encodeURIComponent(p.message_id)}`;

// ready shows the page when every part of it is there, or cannot be had, so that nothing moves down.
function ready(part) {
  answered.add(part);
  $('all').hidden = answered.size < 3;
}

const answered = new Set(); // of tables, letters and events

function letters(list, items, words) {
  if ($(`no-${list}`)) $(`no-${list}`).hidden = items.length > 0 || !$('silent').hidden;
  fill($(list), items, (item) => {
    const { path, done, giveUp, ...texts } = words(item);
    const node = stamp('letter', { ...texts, discard: giveUp ? 'Discard' : '', body: JSON.stringify(readable(item.message), null, 2) });
    node.querySelector('details').dataset.key = item.message_id;
    if (!path) {
      node.querySelector('.verbs').remove();
      return node;
    }
    const discard = part(node, 'discard');
    if (giveUp) {
      discard.setAttribute('aria-label', `Discard: ${texts.what}`);
      discard.addEventListener('click', async () => {
        await decide(giveUp.path, 'Discard this message', giveUp.what);
        say('It is given up.');
        lookNow();
      });
    } else {
      discard.remove();
    }
    const button = part(node, 'again');
    button.setAttribute('aria-label', `${texts.again}: ${texts.what}`);
    button.addEventListener('click', async () => {
      if (button.ariaDisabled === 'true') return;
      button.ariaDisabled = 'true'; // unlike disabled, it keeps the focus
      try {
        await api('POST', path);
        say(done);
      } catch (err) {
        if (!(err instanceof Problem)) throw err;
        button.ariaDisabled = null;
        set(part(node, 'reason'), err.words);
      }
      lookNow();
    });
    return node;
  }, (item) => `${item.consumer ?? item.service} ${item.message_id}`);
}

// readable shows a message's body as the text that it is, and as JSON if it is that, where the API has it as base64.
function readable(message) {
  let text;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(Uint8Array.from(atob(message.Body), (c) => c.charCodeAt(0)));
    return { ...message, Body: JSON.parse(text) };
  } catch {
    return text === undefined ? message : { ...message, Body: text };
  }
}

// The orders' events

const page = 50; // what the API gives at once, unless it is asked for all of one order
let pages = 1; // that are looked at

async function events() {
  const order = $('order').value.trim();
  const all = [];
  let more = true;
  try {
    while (more && all.length < pages * page) {
      const before = all.at(-1)?.cursor;
      const { items } = await api('GET', `/ops/api/events?${new URLSearchParams(order ? { order } : before ? { before } : {})}`, { once: true });
      all.push(...items);
      more = !order && items.length === page;
    }
  } finally {
    ready('events');
  }
  $('more').hidden = !more;
  set($('no-events'), all.length ? '' : 'There is none.');
  fill($('events'), all, (e) => {
    const node = stamp('event', { cursor: e.cursor, at: clock(e.at, true), type: e.type, order: e.order, body: JSON.stringify({ id: e.id, version: e.version, header: e.header, data: e.data }, null, 2) });
    node.querySelector('details').dataset.key = e.id;
    part(node, 'trace').href = `/ops/traces?order=${encodeURIComponent(e.order)}`;
    return node;
  }, (e) => e.id);
}

let lookNow = () => {};

if (operators()) {
  frame();
  $('order').value = new URLSearchParams(location.search).get('order') ?? '';
  hearTraffic(tables);
  lookNow = keep(waiting, 'changed');
  const eventsNow = keep(events, 'changed');
  listen();
  $('rebuild').addEventListener('click', rebuild);
  $('order').addEventListener('input', () => {
    pages = 1;
    eventsNow();
  });
  $('filter').addEventListener('submit', (event) => event.preventDefault());
  $('more').addEventListener('click', () => {
    pages++;
    eventsNow();
  });
}
