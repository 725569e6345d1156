// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

import { Problem } from '../api.js';
import { $ } from '../dom.js';
import { enterFromIssuer } from '../enter.js';
import { frame } from '../frame.js';

frame();

const answer = new URLSearchParams(location.search);
// The code is used once, and is nobody's business: not in the history, not in a referrer, not on a screen that is shared.
history.replaceState(null, '', location.pathname);

function failed(text) {
  $('state').hidden = true;
  $('problem').textContent = text;
  $('again').hidden = false;
}

if (answer.has('error')) {
  // What the issuer says about it is not shown: anybody can write such an address.
  failed(answer.get('error') === 'access_denied' ? 'You did not sign in there.' : 'The sign-in did not work there.');
} else {
  try {
    await enterFromIssuer({ code: answer.get('code') ?? '', state: answer.get('state') ?? '', iss: answer.get('iss') ?? '' });
  } catch (err) {
    if (!(err instanceof Problem)) throw err;
    failed(err.words);
  }
}
