// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { svg } from './svg.js';

// bar draws when something happened within a longer time, all in milliseconds. What is very short can still be seen.
export function bar(start, took, all, attributes) {
  const percent = (ms) => Math.min(100, Math.max(0, (100 * ms) / Math.max(all, 0.001)));
  const from = Math.min(percent(start), 99.5);
  return svg('svg', { 'aria-hidden': 'true' },
    svg('rect', { class: 'track', y: '45%', width: '100%', height: '10%' }),
    svg('rect', { x: `${from}%`, y: '15%', width: `${Math.max(0.5, Math.min(percent(took), 100 - from))}%`, height: '70%', rx: 2, ...attributes }));
}
