// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The map of the services: who calls whom, what the breakers in between say, and how events flow. It is drawn from
// what was seen to happen; only the places of the services are known beforehand.

import { put, svg } from './svg.js';
import { perSecond, span } from './units.js';

// Tiers from the entry down. A service that is not here gets a place in the last one.
const tiers = [
  [null, 'gateway', null],
  ['customer', 'order', 'catalog'],
  ['inventory', 'payment', 'shipping'],
  ['notification', 'provider', 'reporting'],
];
const lanes = 3;

const wide = { name: 'wide', pitch: 330, width: 214, height: 76, tops: [12, 142, 272, 462], bar: 394, thick: 28, rail: 16, step: 9, port: 18 };
const narrow = { name: 'narrow', pitch: 122, width: 92, height: 74, tops: [8, 128, 248, 428], bar: 366, thick: 24, rail: 5, step: 3, port: 11 };

export class ServiceMap {
  #root;
  #shape;
  #svg;
  #places; // by service: {tier, lane, x, y}
  #nodes = new Map();
  #edges = new Map();
  #last;

  constructor(root) {
    this.#root = root;
    const narrowly = matchMedia('(max-width: 44rem)');
    const lay = () => {
      this.#shape = narrowly.matches ? narrow : wide;
      this.#lay();
    };
    narrowly.addEventListener('change', lay);
    lay();
  }

  // still stops or starts everything that moves.
  set still(on) { this.#root.classList.toggle('still', on); }

  show(sample) {
    this.#last = sample;
    const drawn = sample.services.map((s) => s.service).join() + sample.calls.map((c) => `${c.from}>${c.to}`).join() + sample.flows.map((f) => f.service + Boolean(f.group)).join();
    if (this.#root.dataset.drawn !== drawn) {
      this.#root.dataset.drawn = drawn;
      this.#draw(sample);
    }
    for (const s of sample.services) this.#node(s, sample.flows.reduce((sum, f) => sum + (f.group && f.service === s.service ? f.rate : 0), 0));
    for (const c of sample.calls) this.#call(c);
    this.#flows(sample.flows);
    const open = sample.calls.filter((c) => c.breaker.state === 'open').map((c) => `${c.from} to ${c.to}`);
    const down = sample.services.filter((s) => !s.instances.some((i) => i.up)).map((s) => s.service);
    put(this.#svg, { 'aria-label': `Map of ${sample.services.length} services. Down: ${down.join(', ') || 'none'}. Open breakers: ${open.join(', ') || 'none'}. The tables below say the same in words.` });
  }

  #lay() {
    const s = this.#shape;
    this.#svg?.remove();
    this.#svg = svg('svg', { viewBox: `0 0 ${s.pitch * lanes} ${s.tops[3] + s.height + 10}`, role: 'img', 'aria-label': 'Map of the services', class: s.name });
    this.#root.append(this.#svg);
    delete this.#root.dataset.drawn;
    if (this.#last) this.show(this.#last);
  }

  #draw({ services, calls, flows }) {
    const s = this.#shape;
    this.#places = new Map();
    tiers.forEach((tier, t) => tier.forEach((name, lane) => {
      if (services.some((one) => one.service === name)) this.#places.set(name, { tier: t, lane, x: s.pitch * (lane + 0.5), y: s.tops[t] });
    }));
    const nodes = services.filter((one) => this.#places.has(one.service));
    const known = calls.filter((c) => this.#places.has(c.from) && this.#places.has(c.to));
    const speakers = new Set(flows.filter((f) => !f.group).map((f) => f.service));
    const hearers = new Set(flows.filter((f) => f.group).map((f) => f.service));

    const under = svg('g', {});
    const over = svg('g', {});
    this.#edges.clear();
    this.#nodes.clear();
    const paths = this.#route(known);
    for (const c of known) this.#edges.set(`${c.from}>${c.to}`, this.#edge(under, over, paths.get(c), 'call', this.#middle(c), c));
    const bar = svg('g', { class: 'bar' },
      svg('rect', { x: s.rail, y: s.bar, width: s.pitch * lanes - 2 * s.rail, height: s.thick, rx: s.thick / 2 }),
      svg('text', { x: s.rail + 14, y: s.bar + s.thick / 2, 'dominant-baseline': 'central' }, 'events'));
    for (const [service, place] of this.#places) {
      if (speakers.has(service)) this.#edges.set(`${service}>`, this.#edge(under, over, this.#rail(place, 1), 'message'));
      if (hearers.has(service)) this.#edges.set(`>${service}`, this.#edge(under, over, this.#rail(place, -1), 'message'));
    }
    this.#svg.replaceChildren(arrows(), under, bar, ...nodes.map((n) => this.#box(n.service)), over);
    for (const e of this.#edges.values()) e.settle();
  }

  // route finds the way of each call. Those to the next tier go straight, those further down through the space
  // between two lanes, each on a line of its own.
  #route(calls) {
    const s = this.#shape;
    const ends = new Map(); // by node and side, the calls that touch it there
    const touch = (service, side, call) => {
      const key = `${service} ${side}`;
      ends.set(key, [...(ends.get(key) ?? []), call]);
    };
    const sides = (c) => {
      const from = this.#places.get(c.from);
      const to = this.#places.get(c.to);
      if (from.tier === to.tier) return from.lane < to.lane ? ['right', 'left'] : ['left', 'right'];
      return from.tier < to.tier ? ['bottom', 'top'] : ['top', 'bottom'];
    };
    for (const c of calls) {
      const [a, b] = sides(c);
      touch(c.from, a, c);
      touch(c.to, b, c);
    }
    const port = (service, side, call) => {
      const place = this.#places.get(service);
      const other = (c) => this.#places.get(c.from === service ? c.to : c.from);
      const order = ends.get(`${service} ${side}`).toSorted((a, b) => other(a).lane - other(b).lane || other(a).tier - other(b).tier);
      const along = (order.indexOf(call) - (order.length - 1) / 2) * s.port;
      switch (side) {
        case 'left': return [place.x - s.width / 2, place.y + s.height / 2];
        case 'right': return [place.x + s.width / 2, place.y + s.height / 2];
        case 'top': return [place.x + along, place.y];
        default: return [place.x + along, place.y + s.height];
      }
    };
    const used = new Map(); // lines taken in each space
    const paths = new Map();
    for (const c of calls) {
      const [a, b] = sides(c);
      const [x1, y1] = port(c.from, a, c);
      const [x2, y2] = port(c.to, b, c);
      const from = this.#places.get(c.from);
      const to = this.#places.get(c.to);
      if (from.tier === to.tier) {
        paths.set(c, `M${x1} ${y1}L${x2} ${y2}`);
        continue;
      }
      if (Math.abs(from.tier - to.tier) === 1) {
        const half = (y1 + y2) / 2;
        paths.set(c, `M${x1} ${y1}C${x1} ${half} ${x2} ${half} ${x2} ${y2}`);
        continue;
      }
      const space = to.lane === 2 || (to.lane === 1 && to.tier % 2 === 0) ? 1 : 0;
      const n = used.get(space) ?? 0;
      used.set(space, n + 1);
      const x = s.pitch * (space + 1) + (n - 1) * s.step;
      const top = s.tops[Math.min(from.tier, to.tier) + 1];
      const end = s.tops[Math.max(from.tier, to.tier) - 1] + s.height;
      const [in1, in2] = from.tier < to.tier ? [top, end] : [end, top];
      paths.set(c, `M${x1} ${y1}C${x1} ${(y1 + in1) / 2} ${x} ${(y1 + in1) / 2} ${x} ${in1}V${in2}C${x} ${(in2 + y2) / 2} ${x2} ${(in2 + y2) / 2} ${x2} ${y2}`);
    }
    return paths;
  }

  // middle is where on the way of a call its breaker stands, so that no two stand in one place.
  #middle({ from, to }) {
    const tiers = Math.abs(this.#places.get(from).tier - this.#places.get(to).tier);
    return [0.3, 0.5][tiers] ?? 0.8;
  }

  // crowded tells that what is said of a call has to stand left of it: on the right are the calls of the gateway that come
  // from above to the same place.
  #crowded({ from, to }) {
    const a = this.#places.get(from);
    const b = this.#places.get(to);
    return a.lane === b.lane && a.tier === 1 && b.tier === 2;
  }

  // rail is the way of events between a service and the bar: side 1 for what it says, -1 for what it hears.
  #rail(place, side) {
    const s = this.#shape;
    if (place.tier === 3) {
      const x = place.x + side * s.port;
      return side > 0 ? `M${x} ${place.y}V${s.bar + s.thick}` : `M${x} ${s.bar + s.thick}V${place.y}`;
    }
    const edge = place.x + side * s.width / 2;
    const x = edge + side * (s.rail + (place.tier === 1 ? s.step : 0));
    const y = place.y + s.height * 0.75;
    return side > 0 ? `M${edge} ${y}H${x}V${s.bar}` : `M${x} ${s.bar}V${y}H${edge}`;
  }

  #edge(under, over, d, kind, at, call) {
    const line = svg('path', { d, class: kind, 'marker-end': `url(#${kind}-end)` });
    const flow = svg('path', { d, class: `flow ${kind}`, 'data-speed': 0 });
    under.append(line, flow);
    const edge = { line, flow, settle() {} };
    if (at === undefined) return edge;
    edge.breaker = svg('circle', { class: 'breaker', r: 4, 'data-state': 'closed', 'data-call': `${call.from}>${call.to}` });
    const left = this.#crowded(call);
    edge.label = svg('text', { class: 'edge', 'dominant-baseline': 'central', 'text-anchor': left ? 'end' : 'start' });
    over.append(edge.breaker, edge.label);
    edge.settle = () => { // only what is in the page has a length
      const { x, y } = line.getPointAtLength(line.getTotalLength() * at);
      put(edge.breaker, { cx: x, cy: y });
      put(edge.label, { x: left ? x - 9 : x + 9, y });
    };
    return edge;
  }

  #box(service) {
    const s = this.#shape;
    const { x, y } = this.#places.get(service);
    const left = x - s.width / 2;
    const pad = s.name === 'wide' ? 12 : 7;
    const text = (cls, line) => svg('text', { class: cls, x: left + pad, y: y + (s.name === 'wide' ? [24, 46, 65] : [20, 39, 54])[line] });
    const parts = { name: text('name', 0), rate: text('figure', 1), note: text('note', 2), instances: svg('g', { class: 'instances' }) };
    parts.name.textContent = service;
    const node = svg('g', { class: 'node-box', 'data-service': service },
      svg('rect', { x: left, y, width: s.width, height: s.height, rx: 9 }), parts.name, parts.rate, parts.note, parts.instances);
    this.#nodes.set(service, { node, ...parts });
    return node;
  }

  #node(one, heard) {
    const at = this.#nodes.get(one.service);
    if (!at) return;
    const s = this.#shape;
    const up = one.instances.filter((i) => i.up).length;
    const box = one.outbox;
    put(at.node, { 'data-state': up === 0 ? 'down' : up < one.instances.length ? 'partly' : 'up' });
    const broad = s.name === 'wide';
    write(at.rate, up === 0 ? (broad ? 'does not answer' : 'no answer') : one.rate === 0 ? (heard ? `hears ${perSecond(heard)}` : 'idle') : broad ? `${perSecond(one.rate)} · p99 ${span(one.p99_seconds)}` : perSecond(one.rate));
    const troubles = [
      one.errors >= 0.05 && `${perSecond(one.errors)} errors`,
      box?.dead_letters > 0 && `${box.dead_letters} dead`,
      box?.parked > 0 && `${box.parked} parked`,
      box?.waiting > 0 && `${box.waiting} waiting`,
    ].filter(Boolean);
    write(at.note, up === 0 ? '' : troubles.length ? (broad ? troubles.join(' · ') : troubles[0]) : one.rate === 0 ? '' : broad ? `p50 ${span(one.p50_seconds)}` : `p99 ${span(one.p99_seconds)}`);
    put(at.note, { 'data-trouble': one.errors >= 0.05 || box?.dead_letters > 0 || box?.parked > 0 });
    const { x, y } = this.#places.get(one.service);
    const signature = one.instances.map((i) => (i.up ? 1 : 0)).join('');
    if (at.instances.dataset.shown !== signature) {
      at.instances.dataset.shown = signature;
      at.instances.replaceChildren(...one.instances.map((i, n) => svg('circle', {
        cx: x + s.width / 2 - (broad ? 15 : 9) - n * (broad ? 15 : 9), cy: broad ? y + 19 : y + s.height - 10, r: broad ? 5 : 3, 'data-up': i.up,
      })));
    }
  }

  #call(c) {
    const edge = this.#edges.get(`${c.from}>${c.to}`);
    if (!edge) return;
    const { state } = c.breaker;
    put(edge.line, { 'data-state': state, 'data-idle': c.rate < 0.05 });
    put(edge.flow, { 'data-speed': state === 'open' ? 0 : speed(c.rate) });
    put(edge.breaker, { 'data-state': state, r: { open: 9, 'half-open': 7 }[state] ?? 4 });
    put(edge.label, { 'data-state': state });
    const broad = this.#shape.name === 'wide';
    write(edge.label, state === 'open' ? 'open' : state === 'half-open' ? (broad ? 'half-open' : 'half') : broad && c.rate >= 0.05 ? perSecond(c.rate) : '');
  }

  #flows(flows) {
    const sums = new Map();
    for (const f of flows) {
      const key = f.group ? `>${f.service}` : `${f.service}>`;
      sums.set(key, (sums.get(key) ?? 0) + f.rate);
    }
    for (const [key, rate] of sums) {
      const edge = this.#edges.get(key);
      if (!edge) continue;
      put(edge.line, { 'data-idle': rate < 0.05 });
      put(edge.flow, { 'data-speed': speed(rate) });
    }
  }
}

function arrows() {
  const arrow = (kind) => svg('marker', { id: `${kind}-end`, class: `end ${kind}-end`, viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: 'userSpaceOnUse', orient: 'auto-start-reverse' }, svg('path', { d: 'M0 0.5L8 4L0 7.5Z' }));
  return svg('defs', {}, arrow('call'), arrow('message'));
}

function speed(rate) { return rate < 0.05 ? 0 : rate < 3 ? 1 : rate < 15 ? 2 : 3; }

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
