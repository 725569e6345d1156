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
  trouble('This page is for operators: sign in with an operator’s account.');
  for (const e of $('main').children) {
    if (!e.matches('h1, .heading, #connection')) e.hidden = true;
  }
  for (const e of $('main').querySelectorAll('.heading > :not(h1)')) e.hidden = true;
}

// trouble shows what is wrong, a text or a Problem; an empty text takes it away.
export function trouble(what) {
  if (what instanceof Problem && what.status === 403) {
    turnAway();
    return;
  }
  const text = what instanceof Problem ? what.words : what;
  set($('connection'), text);
  $('connection').hidden = !text;
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
