// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { Problem, api, persist } from '../api.js';
import { $, set, stamp } from '../dom.js';
import { when } from '../format.js';
import { customers } from '../frame.js';

async function show() {
  try {
    const { items } = await persist(() => api('GET', '/api/me/mails'), (text) => set($('problem'), text));
    set($('problem'), '');
    $('mails').replaceChildren(...items.map((m) => stamp('mail', { subject: m.subject, when: when(m.at), recipient: m.recipient, body: m.body })));
    $('empty').hidden = items.length > 0;
  } catch (err) {
    if (!(err instanceof Problem)) throw err;
    set($('problem'), err.words);
  } finally {
    $('mails').removeAttribute('aria-busy');
  }
}

if (customers()) show();
