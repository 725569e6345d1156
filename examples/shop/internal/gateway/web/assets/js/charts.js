// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The charts of the last minutes, by uPlot (vendor/uplot).

import uPlot from '../vendor/uplot/uPlot.esm.js';
import { part, set, stamp } from './dom.js';
import { figure, perSecond, span } from './units.js';

const kept = 300; // moments

const seconds = (s) => (s === 0 ? '0' : span(s));
const plans = [
  { title: 'Requests', unit: perSecond, series: [['requests', 'a', (t) => t.rate], ['errors', 'bad', (t) => t.errors]] },
  { title: 'Time to answer', unit: seconds, series: [['p50', 'b', (t) => t.p50_seconds], ['p99', 'a', (t) => t.p99_seconds]] },
  { title: 'Orders', unit: perSecond, series: [['placed', 'b', (t) => t.placed], ['confirmed', 'a', (t) => t.confirmed]] },
  { title: 'Sagas under way', unit: figure, series: [['running', 'a', (t) => t.sagas], ['stuck', 'bad', (t) => t.stuck]] },
  { title: 'Oldest in an outbox', unit: seconds, series: [['age', 'a', (t) => t.outbox_seconds]] },
  { title: 'Messages that wait', unit: figure, series: [['outboxes', 'b', (t) => t.outbox_waiting], ['queues', 'a', (t) => t.behind], ['dead', 'bad', (t) => t.dead_letters]] },
];

export class Charts {
  #moments = []; // {at in seconds, totals}
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

  // past takes the moments before the first that add brings.
  past(moments) {
    this.#moments = moments.map(({ at, totals }) => ({ at: Date.parse(at) / 1000, totals }));
    this.#show();
  }

  add({ at, totals }) {
    const time = Date.parse(at) / 1000;
    if (this.#moments.at(-1)?.at >= time) return;
    this.#moments.push({ at: time, totals });
    if (this.#moments.length > kept) this.#moments.shift();
    this.#show();
  }

  #data({ series }) {
    return [this.#moments.map((m) => m.at), ...series.map(([, , get]) => this.#moments.map((m) => get(m.totals)))];
  }

  #show() {
    plans.forEach((plan, i) => {
      this.#plots[i].setData(this.#data(plan));
      const last = this.#moments.at(-1);
      if (!last) return;
      plan.series.forEach(([, , get], n) => set(part(this.#cards[i].querySelectorAll('.value')[n], 'now'), plan.unit(get(last.totals))));
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
          { ...axis, size: 24, space: 60, values: (_, times) => times.map((t) => new Date(t * 1000).toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' }).replace(/^00:/, '')) },
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
