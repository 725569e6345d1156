// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// What sign-in and sign-up share.

import { api } from './api.js';
import { $ } from './dom.js';
import { submitting } from './fields.js';
import { frame } from './frame.js';
import { comeBackTo, signedIn } from './session.js';

// entrance prepares the page: its form is sent by send, and the link to the other page of the
// two keeps where the person wanted to go.
export function entrance(send) {
  frame();
  $('other').search = location.search;
  submitting($('form'), send);
}

// enter opens a session and goes to where the person wanted to be.
export async function enter(email, password) {
  const session = await api('POST', '/api/sessions', { body: { email, password }, signIn: false });
  const { id, name, role } = await api('GET', '/api/me', { headers: { Authorization: `Bearer ${session.token}` } });
  signedIn(session, { id, name, role });
  location.replace(comeBackTo());
}
