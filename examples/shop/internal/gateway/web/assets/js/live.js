// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// How the operators' pages stay up to date: one stream of /ops/api/live for all parts of a page. It brings what
// they show, or word that something has changed, upon which they read again. Only while there is no stream do
// they read again and again.

import { Problem, api, wait } from './api.js';
import { trouble } from './operator.js';
import { follow } from './stream.js';

const slow = 5_000; // ms between two looks without a stream

const heard = new Map(); // by the name of an event, what is called with its data
const wakes = []; // of everything that is kept
let flowing = false;

// hear calls fn with the data of each event of this name.
export function hear(name, fn) {
  heard.set(name, [...(heard.get(name) ?? []), fn]);
}

// keep looks at once, again whenever one of these events comes, and now and then while there is no stream. Nobody
// looks while the page cannot be seen. A look that fails says so, and is repeated; one that is not allowed is the
// last. The returned function looks now.
export function keep(look, ...names) {
  let due = true;
  let pause = new AbortController();
  const now = () => {
    due = true;
    pause.abort();
  };
  for (const name of names) hear(name, now);
  wakes.push(now);
  (async () => {
    for (let failing = false; ;) {
      if (due && !document.hidden) {
        due = false;
        try {
          await look();
          trouble(now, '');
          failing = false;
        } catch (err) {
          if (!(err instanceof Problem)) throw err;
          failing = true;
          trouble(now, err);
          if (err.status === 403 || err.status === 404) return;
        }
      }
      pause = new AbortController();
      if (due && !document.hidden) continue; // there was news during the look
      await wait(slow, pause.signal);
      due ||= failing || !flowing;
    }
  })();
  return now;
}

// hearAndAsk calls show with the data of each event of this name. The returned function asks for the same at this path; an
// answer during which the stream has told something newer is not shown.
export function hearAndAsk(name, path, show) {
  let told = 0;
  hear(name, (data) => {
    told++;
    show(data);
  });
  return async () => {
    const before = told;
    const answer = await api('GET', path, { once: true });
    if (told === before) show(answer);
  };
}

// hearTraffic calls show with what happens in the shop, as the stream tells it, at first and without a stream as it is asked for.
export function hearTraffic(show) {
  keep(hearAndAsk('traffic', '/ops/api/traffic', show));
}

// listen opens the stream, for as long as the page is open.
export function listen() {
  const leaving = new AbortController();
  addEventListener('pagehide', () => leaving.abort());
  addEventListener('pageshow', (event) => { if (event.persisted) location.reload(); });
  document.addEventListener('visibilitychange', () => { if (!document.hidden) wake(); });
  let first = true;
  follow('/ops/api/live', {
    on({ name, data }) {
      if (name === 'open') {
        flowing = true;
        trouble(listen, '');
        if (!first) wake(); // who knows what was missed
        first = false;
        return;
      }
      const value = JSON.parse(data);
      for (const fn of heard.get(name) ?? []) {
        try {
          fn(value);
        } catch (err) {
          reportError(err); // of one part of the page, which the others do not share
        }
      }
    },
    lost() {
      flowing = false;
      trouble(listen, 'The connection is lost; connecting again …');
    },
    signal: leaving.signal,
  }).catch((err) => {
    if (!(err instanceof Problem)) throw err;
    trouble(listen, err);
  });
}

function wake() {
  for (const now of wakes) now();
}
