// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// What the operators' pages have in common: who may see them, what is wrong, and decisions with a reason.

import { Problem, api } from './api.js';
import { $, set } from './dom.js';
import { clearProblem, submitting } from './fields.js';
import { frame } from './frame.js';
import { account, leaveToSignIn } from './session.js';

// operators tells whether an operator is signed in. Who is nobody is sent to sign in; anybody else is told whose page
// this is, and sees nothing of it.
export function operators() {
  const who = account();
  if (!who) leaveToSignIn();
  else if (who.role !== 'operator') {
    frame();
    turnAway();
  }
  return who?.role === 'operator';
}

function turnAway() {
  for (const e of $('main').children) {
    if (!e.matches('h1, .heading, #connection')) e.hidden = true;
  }
  for (const e of $('main').querySelectorAll('.heading > :not(h1)')) e.hidden = true;
  set($('connection'), 'This page is for operators: sign in with an operator’s account.');
  $('connection').hidden = false;
  away = true;
}

const troubles = new Map(); // by the part of the page whose they are, in the order in which they began
let away = false;

// trouble shows what is wrong with a part of the page, which any object stands for: a text or a Problem. An empty text takes
// that away, and nothing that is wrong with another part.
export function trouble(of, what) {
  if (away) return;
  if (what instanceof Problem && what.status === 403) {
    turnAway();
    return;
  }
  const text = what instanceof Problem ? what.words : what;
  if (text) troubles.set(of, text);
  else troubles.delete(of);
  const [first = ''] = troubles.values();
  set($('connection'), first);
  $('connection').hidden = !first;
}

let decision; // {path, done} of the one that is asked for

// decide asks for the reason of a decision, and then for the decision at this path of the API. It resolves when that
// is taken, and never if the person leaves it.
export function decide(path, title, what) {
  const form = $('decision-form');
  set($('decision-title'), title);
  set($('decision-what'), what);
  set($('decide'), title);
  form.reset();
  clearProblem(form);
  $('decision').showModal();
  return new Promise((done) => { decision = { path, done }; });
}

if ($('decision')) {
  submitting($('decision-form'), async ({ why }) => {
    await api('POST', decision.path, { body: { why } });
    $('decision').close();
    decision.done();
  });
  $('leave').addEventListener('click', () => $('decision').close());
}
