// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The little that the pages need to fill their templates. Text goes in as text, never as HTML.

export const $ = (id) => document.getElementById(id);

// part finds the element of a stamped template that is called so.
export const part = (node, name) => node.querySelector(`[data-is="${name}"]`);

// stamp copies a template of the page and fills its named parts.
export function stamp(id, texts = {}) {
  const node = $(id).content.firstElementChild.cloneNode(true);
  for (const [name, text] of Object.entries(texts)) part(node, name).textContent = text;
  return node;
}

// set changes a text only if it differs, so that live regions speak only of changes.
export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const shown = new WeakMap(); // by list: what its rows show and are, by key

// fill shows each item in a row that make makes, in a list that nobody else changes. A row stays while its item is what it was,
// so a selection and the focus survive the next look; one that is written anew keeps the focus and what is unfolded in it.
// The key tells items apart, so that the focus is never on another item than it was. When that is gone, the heading above
// has the focus.
export function fill(list, items, make, key = (_, i) => i) {
  const before = shown.get(list) ?? new Map();
  const now = new Map(items.map((item, i) => [key(item, i), { item, text: JSON.stringify(item) }]));
  shown.set(list, now);
  const focused = list.contains(document.activeElement) && document.activeElement;
  for (const [k, { row }] of before) {
    if (!now.has(k)) row.remove();
  }
  let next = list.firstElementChild;
  for (const [k, one] of now) {
    const was = before.get(k);
    one.row = was?.text === one.text ? was.row : make(one.item);
    if (was && was.row !== one.row) {
      if (next === was.row) next = one.row;
      replace(was.row, one.row);
    }
    if (next === one.row) next = next.nextElementSibling;
    else list.insertBefore(one.row, next);
  }
  if (!focused || list.contains(document.activeElement)) return;
  if (focused.isConnected) { // it was moved
    focused.focus();
    return;
  }
  const heading = (list.closest('section') ?? $('main')).querySelector('h1, h2, h3');
  heading.tabIndex = -1;
  heading.focus();
}

function replace(old, row) {
  const stops = 'a, button, summary, [tabindex]';
  const focus = [...old.querySelectorAll(stops)].indexOf(document.activeElement);
  const open = new Set([...old.querySelectorAll('details[open]')].map((d) => d.dataset.key));
  for (const d of row.querySelectorAll('details')) d.open = open.has(d.dataset.key);
  old.replaceWith(row);
  row.querySelectorAll(stops)[focus]?.focus();
}
