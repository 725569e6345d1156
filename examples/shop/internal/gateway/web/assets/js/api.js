// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// How the pages ask the shop's API. Every failure is a Problem, whatever went wrong.

import { sentence } from './format.js';
import { leaveToSignIn, token } from './session.js';

// Problem is an answer other than success: a body of RFC 9457, or no answer at all.
export class Problem extends Error {
  constructor(status, body = {}, retryAfter = 0) {
    super(body.detail || body.title || `The shop answered with status ${status}.`);
    this.status = status; // 0 if no answer came
    this.field = body.field; // the input that is wrong, such as "items[0].quantity"
    this.retryAfter = retryAfter; // seconds
  }

  // unsure tells that asking again may have another answer. If a change was asked for, it
  // may have been made all the same.
  get unsure() {
    return this.status === 0 || this.status >= 500 || this.status === 409 || this.status === 429;
  }

  // words are what to tell a person: what is wrong and, if that takes a while, when to come back.
  get words() {
    return sentence(this.message) + (this.retryAfter > 1 ? ` Please wait ${this.retryAfter} seconds.` : '');
  }
}

// open asks and returns the response as soon as its head is there.
export async function open(method, path, { headers = {}, body, signal, signIn = true } = {}) {
  const all = { Accept: 'application/json', ...headers };
  if (token()) all.Authorization ??= `Bearer ${token()}`;
  if (body !== undefined) all['Content-Type'] = 'application/json';
  let response;
  try {
    response = await fetch(path, { method, headers: all, body, signal, cache: 'no-store' });
  } catch (err) {
    if (signal?.aborted) throw err;
    throw new Problem(0, { detail: 'The shop does not answer. Is it running?' });
  }
  if (response.ok) return response;
  if (response.status === 401 && signIn) return leaveToSignIn();
  throw new Problem(response.status, await response.json().catch(() => ({})), Number(response.headers.get('Retry-After')) || 0);
}

// api asks and returns the answer. A body that is not a string is sent as JSON. A GET changes nothing, so
// it is repeated twice when that may help, unless it is wanted once; what to do about a change is the caller's decision.
export async function api(method, path, { body, once = method !== 'GET', ...options } = {}) {
  const sent = body === undefined || typeof body === 'string' ? body : JSON.stringify(body);
  for (let n = 1; ; n++) {
    try {
      const response = await open(method, path, { body: sent, ...options });
      if (response.status === 204) return null;
      return await response.json().catch(() => { throw new Problem(0, { detail: 'The answer of the shop broke off.' }); });
    } catch (err) {
      if (once || n === 3 || options.signal?.aborted || !(err instanceof Problem && err.unsure)) throw err;
      await wait(1000 * Math.max(err.retryAfter, n / 4), options.signal);
    }
  }
}

const patience = 2000; // ms between two looks of who persists

// persist looks until the answer is sure, and tells of each that is not. Nobody looks while the page cannot be seen.
export async function persist(look, tell, signal) {
  for (;;) {
    try {
      return await look();
    } catch (err) {
      if (signal?.aborted || !(err instanceof Problem && err.unsure)) throw err;
      tell(`${err.words} Trying again …`);
      do await wait(Math.max(1000 * err.retryAfter, patience), signal); while (document.hidden && !signal?.aborted);
    }
  }
}

// wait resolves after some milliseconds, or at once when signal aborts.
export function wait(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
