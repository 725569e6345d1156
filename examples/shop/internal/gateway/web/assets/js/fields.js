// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Problems are shown at the field that they name.

import { Problem } from './api.js';
import { sentence } from './format.js';

export function clearProblem(form) {
  for (const e of form.querySelectorAll('.error')) e.textContent = '';
  for (const e of form.querySelectorAll('[aria-invalid]')) e.removeAttribute('aria-invalid');
}

// showProblem writes what is wrong below the input of that name, or on top of the form, and
// takes the person there.
export function showProblem(form, err) {
  if (!(err instanceof Problem)) throw err;
  const input = err.field && form.querySelector(`#${CSS.escape(err.field)}`);
  const text = form.querySelector(input ? `#${CSS.escape(err.field)}-error` : '.error.whole');
  text.textContent = input || !err.field ? err.words : sentence(`${err.field}: ${err.message}`);
  if (!input) return;
  input.setAttribute('aria-invalid', 'true');
  (input.matches('fieldset') ? input.querySelector('input') : input).focus();
}

// submitting makes a form run send once at a time, and shows its problem.
export function submitting(form, send) {
  const button = form.querySelector('[type=submit]');
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (button.getAttribute('aria-disabled') === 'true') return;
    button.setAttribute('aria-disabled', 'true'); // unlike disabled, it keeps the focus
    clearProblem(form);
    try {
      await send(Object.fromEntries(new FormData(form)));
    } catch (err) {
      showProblem(form, err);
    } finally {
      button.removeAttribute('aria-disabled');
    }
  });
}
