// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The charts of the last minutes, by uPlot (vendor/uplot).

import uPlot from '../vendor/uplot/uPlot.esm.js';
import { part, set, stamp } from './dom.js';
import { figure, perSecond, span } from './units.js';

const kept = 300; // moments

const gap = 12; // seconds without a moment, over which there is no line; while nobody watches there is one every five

const seconds = (s) => (s === 0 ? '0' : span(s));
const plans = [
  { title: 'Requests', unit: perSecond, series: [['requests', 'a', (t) => t.rate], ['errors', 'bad', (t) => t.errors]] },
  { title: 'Time to answer', unit: seconds, series: [['p50', 'b', (t) => (t.rate ? t.p50_seconds : null)], ['p99', 'a', (t) => (t.rate ? t.p99_seconds : null)]] },
  { title: 'Orders', unit: perSecond, series: [['placed', 'b', (t) => t.placed], ['confirmed', 'a', (t) => t.confirmed]] },
  { title: 'Sagas under way', unit: figure, series: [['running', 'a', (t) => t.sagas], ['stuck', 'bad', (t) => t.stuck]] },
  { title: 'Oldest in an outbox', unit: seconds, series: [['age', 'a', (t) => t.outbox_seconds]] },
  { title: 'Messages that wait', unit: figure, series: [['outboxes', 'b', (t) => t.outbox_waiting], ['queues', 'a', (t) => t.behind], ['dead', 'bad', (t) => t.dead_letters]] },
];

const steps = [10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 86_400]; // seconds between two marks of the time

// between are the multiples of step from one time to another.
function between(from, to, step) {
  const first = Math.ceil(from / step);
  return Array.from({ length: Math.max(0, Math.floor(to / step) - first + 1) }, (_, i) => (first + i) * step);
}

const hour = (time, fine) => new Date(time * 1000).toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit', ...(fine && { second: '2-digit' }) });

// said writes a value, also where there is none: what nobody asked took no time.
const said = (unit, value) => (value === null ? '–' : unit(value));

export class Charts {
  #moments = []; // {at in seconds, totals}
  #still = false;
  #cards;
  #plots = [];

  constructor(root) {
    this.#cards = plans.map((plan) => {
      const card = stamp('chart', { title: plan.title });
      part(card, 'values').append(...plan.series.map(([label, colour]) => {
        const value = stamp('value', { label });
        value.dataset.colour = colour;
        return value;
      }));
      return card;
    });
    root.append(...this.#cards);
    // A canvas knows no style sheet: it is drawn anew when what it took from there has changed.
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#make());
    new ResizeObserver(() => this.#fit()).observe(root);
    this.#make();
  }

  // still keeps what is drawn as it is, or goes on with all that was added meanwhile.
  set still(on) {
    this.#still = on;
    this.#show();
  }

  // past takes the moments before the first that add brings. What a gateway that has just started knows of them is less
  // than what is here already.
  past(moments) {
    const told = moments.map(({ at, totals }) => ({ at: Date.parse(at) / 1000, totals }));
    this.#moments = [...this.#moments.filter((m) => !told.length || m.at < told[0].at), ...told].slice(-kept);
    this.#show();
  }

  add({ at, totals }) {
    const time = Date.parse(at) / 1000;
    if (this.#moments.at(-1)?.at >= time) return;
    this.#moments.push({ at: time, totals });
    if (this.#moments.length > kept) this.#moments.shift();
    this.#show();
  }

  // data are the columns of a chart. Where nobody has looked for long there is no value, and no line.
  #data({ series }) {
    const all = this.#moments.flatMap((m, i, before) => (i && m.at - before[i - 1].at > gap ? [{ at: (m.at + before[i - 1].at) / 2 }, m] : [m]));
    return [all.map((m) => m.at), ...series.map(([, , get]) => all.map((m) => (m.totals ? get(m.totals) : null)))];
  }

  #show() {
    if (this.#still) return;
    plans.forEach((plan, i) => {
      this.#plots[i].setData(this.#data(plan));
      const last = this.#moments.at(-1);
      if (!last) return;
      plan.series.forEach(([, , get], n) => set(part(this.#cards[i].querySelectorAll('.value')[n], 'now'), said(plan.unit, get(last.totals))));
    });
  }

  #make() {
    for (const plot of this.#plots) plot.destroy();
    const soft = getComputedStyle(this.#cards[0].querySelector('.values')).color;
    const line = getComputedStyle(this.#cards[0]).borderTopColor;
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    this.#plots = plans.map((plan, i) => {
      const values = [...this.#cards[i].querySelectorAll('.value i')];
      const axis = { stroke: soft, font, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 4 } };
      return new uPlot({
        width: 280, height: 132, legend: { show: false }, cursor: { show: false }, padding: [8, 28, 0, 0],
        scales: { y: { range: (_, min, max) => [0, max > 0 ? max * 1.15 : 1] } },
        axes: [
          { ...axis, size: 24, space: 56, incrs: steps, splits: (_, __, from, to, step) => between(from, to, step), values: (_, times, ___, ____, step) => times.map((t) => hour(t, step < 60)) },
          { ...axis, size: 52, space: 34, values: (_, ticks) => ticks.map((n) => plan.unit(n)) },
        ],
        series: [{}, ...plan.series.map((_, n) => {
          const stroke = getComputedStyle(values[n]).backgroundColor;
          return { stroke, width: 2, points: { show: false }, fill: n === 0 && plan.series.length === 1 ? `color-mix(in srgb, ${stroke} 15%, transparent)` : undefined };
        })],
      }, this.#data(plan), part(this.#cards[i], 'plot'));
    });
    this.#fit();
  }

  #fit() {
    this.#plots.forEach((plot, i) => {
      const width = Math.floor(part(this.#cards[i], 'plot').clientWidth);
      if (width && width !== plot.width) plot.setSize({ width, height: 132 });
    });
  }
}
