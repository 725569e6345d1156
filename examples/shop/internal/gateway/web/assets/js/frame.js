// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// What every page has around it: who is signed in, how much is in the basket, and a voice.

import { onBasket, pieces } from './basket.js';
import { $, set } from './dom.js';
import { account, leaveToSignIn, signOut } from './session.js';

export function frame() {
  const who = account();
  $('sign-in').hidden = Boolean(who);
  $('who').hidden = $('sign-out').hidden = !who;
  $('who').textContent = who?.name ?? '';
  $('ops').hidden = who?.role !== 'operator';
  $('sign-out').addEventListener('click', () => location.assign(signOut()));
  for (const link of document.querySelectorAll('.top a[href], .bottom a[href], .tabs a[href]')) {
    if (link.getAttribute('href') === location.pathname) link.setAttribute('aria-current', 'page');
  }
  onBasket(() => set($('basket-count'), String(pieces())));
}

// customers tells whether a customer is signed in. Who is nobody is sent to sign in; staff is told whose page this is, and
// sees nothing else of it.
export function customers() {
  const who = account();
  if (!who) leaveToSignIn();
  else frame();
  if (!who || who.role === 'customer') return Boolean(who);
  for (const e of $('main').children) e.hidden = !e.matches('h1');
  const text = 'This page is for customers: sign in with a customer’s account.';
  document.querySelector('h1').after(Object.assign(document.createElement('p'), { className: 'notice', textContent: text }));
  return false;
}

let gone;

// say shows a short text for a while; it is a status, so screen readers say it.
export function say(text) {
  $('toast').textContent = text;
  $('toast').classList.add('shown');
  clearTimeout(gone);
  gone = setTimeout(() => {
    $('toast').classList.remove('shown');
    $('toast').textContent = '';
  }, 4000);
}
