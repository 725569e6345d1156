// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { Problem, api } from '../api.js';
import { $ } from '../dom.js';
import { enter, entrance, leaveToIssuer } from '../enter.js';
import { clearProblem, showProblem } from '../fields.js';

$('ended').hidden = !new URLSearchParams(location.search).has('ended');
entrance(({ email, password }) => enter(email, password));

$('issuer').addEventListener('click', async () => {
  clearProblem($('form'));
  try {
    await leaveToIssuer();
  } catch (err) {
    showProblem($('form'), err);
  }
});

try {
  const { issuers: [issuer] } = await api('GET', '/api/sign-in', { signIn: false });
  if (issuer) {
    $('issuer').textContent = `Sign in with ${issuer.name}`;
    $('issuer').hidden = false;
  }
} catch (err) {
  if (!(err instanceof Problem)) throw err; // the form is there without it
}
