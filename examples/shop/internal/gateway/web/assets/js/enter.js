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
  await begin(await api('POST', '/api/sessions', { body: { email, password }, signIn: false }), comeBackTo());
}

async function begin(session, to) {
  const { id, name, role } = await api('GET', '/api/me', { headers: { Authorization: `Bearer ${session.token}` } });
  signedIn(session, { id, name, role });
  location.replace(to);
}

// Where to go after a sign-in elsewhere: this tab still knows when it comes back.
const wanted = 'sign-in-to';

// leaveToIssuer goes to the sign-in of another issuer, which leads back to /sign-in/callback.
export async function leaveToIssuer() {
  const { url } = await api('POST', '/api/sign-in', { signIn: false });
  sessionStorage.setItem(wanted, comeBackTo());
  location.assign(url);
}

// enterFromIssuer opens a session with what the issuer has put into the address of this page.
export async function enterFromIssuer({ code, state, iss }) {
  const session = await api('POST', '/api/sign-in/session', { body: { code, state, iss }, signIn: false });
  const to = comeBackTo(sessionStorage.getItem(wanted));
  sessionStorage.removeItem(wanted);
  await begin(session, to);
}
