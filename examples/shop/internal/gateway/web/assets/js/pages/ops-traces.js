// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The traces of an order as waterfalls, over all services.

import { api } from '../api.js';
import { bar } from '../bars.js';
import { $, fill, part, set, stamp } from '../dom.js';
import { frame } from '../frame.js';
import { hear, keep, listen } from '../live.js';
import { operators } from '../operator.js';
import { clock, span } from '../units.js';

const deepest = 8; // that there is a style for

const youth = 60_000; // ms after its last span in which a trace may get more

const asked = () => new URLSearchParams(location.search).get('order') ?? '';

let shown; // the order whose traces are on the page
let last = Infinity; // when the last of their spans ended; there may be one at any time if there is none

async function look() {
  const order = asked();
  if (!order) {
    set($('hint'), 'Say which order; the sagas and the events lead here too.');
    return;
  }
  if (order !== shown) set($('hint'), 'Asking every service …');
  const { items } = await api('GET', `/ops/api/traces?order=${encodeURIComponent(order)}`, { once: true });
  shown = order;
  last = items.length ? Math.max(...items.flatMap(({ spans }) => spans.map((s) => time(s.end)))) : Infinity;
  set($('hint'), items.length ? '' : 'No service remembers a trace of that order. Each keeps the latest only.');
  fill($('traces'), items, show, (t) => t.trace_id);
}

function show({ trace_id: trace, spans }) {
  const begun = Math.min(...spans.map((s) => time(s.start)));
  const ended = Math.max(...spans.map((s) => time(s.end)));
  const services = new Set(spans.map((s) => s.service));
  const all = ended - begun;
  const node = stamp('trace', {
    title: `Trace ${trace.slice(0, 8)}…`, half: span(all / 2000), until: span(all / 1000),
    summary: `${spans.length} spans over ${services.size} services, from ${clock(spans[0].start, true)}; ${span(all / 1000)} in all.`,
  });
  part(node, 'spans').append(...inOrder(spans).map(([s, depth]) => row(s, depth, begun, all)));
  return node;
}

// inOrder puts every span below its parent, those of one parent by their start, with its depth. A span whose
// parent nobody remembers, or that only links to it, stands at the outside.
function inOrder(spans) {
  const known = new Set(spans.map((s) => s.span_id));
  const below = Map.groupBy(spans, (s) => (known.has(s.parent_id) ? s.parent_id : ''));
  const out = [];
  const walk = (id, depth) => {
    for (const s of (below.get(id) ?? []).toSorted((a, b) => time(a.start) - time(b.start))) {
      out.push([s, depth]);
      walk(s.span_id, depth + 1);
    }
  };
  walk('', 0);
  return out;
}

// time reads what is finer than a millisecond too, which Date.parse drops.
function time(iso) {
  const fraction = /\.(\d+)/.exec(iso)?.[1] ?? '';
  return Date.parse(iso.replace(/\.\d+/, '')) + Number(`0.${fraction || 0}`) * 1000;
}

// nameOf says what a span of a request asked for, where its own name does not.
function nameOf({ name, attributes }) {
  const [, method] = /^(?:HTTP )?([A-Z]+)(?: \/)?$/.exec(name) ?? [];
  const path = attributes?.['url.path'] ?? (URL.canParse(attributes?.['url.full']) ? new URL(attributes['url.full']).pathname : '');
  return method && path ? `${method} ${path}` : name;
}

function row(s, depth, begun, all) {
  const took = time(s.end) - time(s.start);
  const failed = s.status === 'error' || Boolean(s.error);
  const node = stamp('span', { service: s.service, name: nameOf(s), took: span(took / 1000), error: s.error ?? '' });
  node.querySelector('.name').classList.add(`depth-${Math.min(depth, deepest)}`);
  node.querySelector('details').dataset.key = s.span_id;
  part(node, 'bar').append(bar(time(s.start) - begun, took, all, { 'data-status': failed ? 'error' : 'ok' }));
  const facts = { instance: s.instance, kind: s.kind, status: s.status, start: clock(s.start, true), span: s.span_id, ...s.attributes };
  for (const link of s.links ?? []) facts.link = typeof link === 'string' ? link : JSON.stringify(link);
  part(node, 'facts').append(...Object.entries(facts).filter(([, value]) => value !== undefined && value !== '').flatMap(([name, value]) => [
    Object.assign(document.createElement('dt'), { textContent: name }), Object.assign(document.createElement('dd'), { textContent: String(value) }),
  ]));
  return node;
}

if (operators()) {
  frame();
  $('order').value = asked();
  const now = keep(look);
  const go = () => {
    $('order').value = asked();
    last = Infinity;
    now();
  };
  hear('changed', ({ at }) => { if (asked() && Date.parse(at) - last < youth) now(); });
  listen();
  $('find').addEventListener('submit', (event) => {
    event.preventDefault();
    history.pushState(null, '', `/ops/traces?order=${encodeURIComponent($('order').value.trim())}`);
    go();
  });
  addEventListener('popstate', go);
}
