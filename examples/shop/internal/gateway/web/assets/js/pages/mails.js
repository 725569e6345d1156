// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { Problem, api } from '../api.js';
import { $, stamp } from '../dom.js';
import { sentence, when } from '../format.js';
import { customers } from '../frame.js';

async function show() {
  try {
    const { items } = await api('GET', '/api/me/mails');
    $('mails').replaceChildren(...items.map((m) => stamp('mail', { subject: m.subject, when: when(m.at), recipient: m.recipient, body: m.body })));
    $('empty').hidden = items.length > 0;
  } catch (err) {
    if (!(err instanceof Problem)) throw err;
    $('empty').hidden = false;
    $('empty').textContent = sentence(err.message);
  } finally {
    $('mails').removeAttribute('aria-busy');
  }
}

if (customers()) show();
