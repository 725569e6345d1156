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
