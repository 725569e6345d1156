// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// A saga as a diagram: its steps from left to right, what undoes them below, and how far it has come.

import { svg } from './svg.js';

const box = { width: 154, height: 52, gap: 20 }; // of which seven fit beside each other
const top = 26;
const below = 122;

// states folds a saga's history into what became of each step: {state, tries} by operation and name.
export function states(saga, history) {
  const all = new Map();
  let way = 'do';
  for (const { step, op, outcome } of history) {
    if (op === 'compensate') way = 'undo';
    if (!step || !['do', 'undo', 'skip'].includes(op)) continue;
    const key = `${op === 'skip' ? way : op} ${step}`;
    all.set(key, op === 'skip' ? { state: 'skipped', tries: 0 } : { state: outcome, tries: (all.get(key)?.tries ?? 0) + 1 });
  }
  const present = { running: 'do', compensating: 'undo' }[saga.status];
  for (const [key, so] of all) {
    if (so.state === 'failed' && key !== `${present} ${saga.step}`) so.state = 'given-up';
  }
  if (saga.step && (saga.status === 'running' || saga.status === 'compensating')) {
    const key = `${saga.status === 'running' ? 'do' : 'undo'} ${saga.step}`;
    const so = all.get(key);
    if (saga.stuck) all.set(key, { state: 'stuck', tries: so?.tries ?? 0 });
    else if (!so) all.set(key, { state: 'working', tries: 0 });
  }
  return all;
}

export function drawPlan(saga, steps, history) {
  const so = states(saga, history);
  const undoes = steps.some((s) => s.undo);
  const width = steps.length * (box.width + box.gap) - box.gap + 4;
  const height = (undoes ? below + box.height : top + box.height) + 6;
  const words = steps.map((s) => `${s.name}: ${word(so.get(`do ${s.name}`))}${so.has(`undo ${s.name}`) ? `, undone: ${word(so.get(`undo ${s.name}`))}` : ''}`);
  const root = svg('svg', { class: 'plan', viewBox: `-2 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': `${words.join('; ')}.` },
    svg('defs', {}, svg('marker', { id: 'plan-end', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: 'userSpaceOnUse', orient: 'auto' }, svg('path', { d: 'M0 0.5L8 4L0 7.5Z' }))));
  steps.forEach((s, i) => {
    const x = i * (box.width + box.gap);
    const did = so.get(`do ${s.name}`);
    if (s.pivot) {
      root.append(svg('path', { class: 'pivot', d: `M${x - box.gap / 2} 4V${height - 4}` }),
        svg('text', { class: 'pivot-text', x: x - box.gap / 2 + 6, y: 14 }, 'pivot: once done, only forward'));
    }
    if (i > 0) root.append(svg('path', { d: `M${x - box.gap} ${top + box.height / 2}H${x - 2}`, 'marker-end': 'url(#plan-end)', 'data-taken': Boolean(did) }));
    root.append(node(x, top, s.name, did, ''));
    if (!s.undo) return;
    const undone = so.get(`undo ${s.name}`);
    root.append(svg('path', { d: `M${x + box.width / 2} ${top + box.height}V${below - 2}`, 'marker-end': 'url(#plan-end)', 'data-taken': Boolean(undone) }), node(x, below, 'undo', undone, 'undo'));
  });
  return root;
}

function node(x, y, title, so, kind) {
  const state = so?.state ?? 'to-come';
  const g = svg('g', { class: kind, 'data-state': state },
    svg('rect', { x, y, width: box.width, height: box.height, rx: 8 }),
    svg('text', { class: 'title', x: x + 9, y: y + 22 }, title),
    svg('text', { class: 'what', x: x + 9, y: y + 41 }, kind && !so ? '–' : word(so)));
  return g;
}

function word(so) {
  if (!so) return 'to come';
  const tries = so.tries > 1 ? `, ${so.tries} times` : '';
  return { done: so.tries > 1 ? `done, try ${so.tries}` : 'done', failed: `failed${tries}`, 'given-up': `failed${tries}`, skipped: 'skipped', refused: 'refused', working: 'at work', stuck: `stuck${tries}`, waiting: 'waits' }[so.state] ?? so.state;
}
