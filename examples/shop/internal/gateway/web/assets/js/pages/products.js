// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The list of products. The address says what is listed, so reload, back and a bookmark work.

import { Problem, api, persist } from '../api.js';
import { add } from '../basket.js';
import { $, part, set, stamp } from '../dom.js';
import { draw } from '../drawing.js';
import { inStock, money } from '../format.js';
import { frame, say } from '../frame.js';

const blanks = 12;
let asked = new AbortController();

// wanted is what the address asks for: q, category and page.
const wanted = () => {
  const params = new URLSearchParams(location.search);
  if (!/^[1-9][0-9]{0,5}$/.test(params.get('page'))) params.delete('page'); // somebody's slip is the first page
  return params;
};

function address(changes) {
  const params = wanted();
  for (const [name, value] of Object.entries(changes)) value ? params.set(name, value) : params.delete(name);
  const query = params.toString();
  return query ? `/?${query}` : '/';
}

async function show() {
  asked.abort();
  asked = new AbortController();
  const { signal } = asked;
  const params = wanted();
  const shelf = $('products');
  shelf.setAttribute('aria-busy', 'true');
  markCategory();
  if (!shelf.children.length) shelf.replaceChildren(...Array.from({ length: blanks }, () => stamp('blank')));
  let page;
  try {
    page = await persist(() => api('GET', `/api/products?${params}`, { signal }), unanswered, signal);
  } catch (err) {
    if (signal.aborted) return; // a newer question has replaced this one
    if (!(err instanceof Problem)) throw err;
    unanswered(err.words);
    return;
  } finally {
    if (!signal.aborted) shelf.removeAttribute('aria-busy');
  }
  shelf.replaceChildren(...page.items.map(card));
  summarise(params, page);
}

function unanswered(text) {
  $('products').replaceChildren();
  set($('summary'), text);
  $('paging').hidden = true;
}

function card(p) {
  const node = stamp('card', { name: p.name, what: p.name, category: p.category, price: money(p.price, p.currency), stock: inStock(p.available) });
  draw(node.querySelector('.picture'), p);
  part(node, 'name').href = `/products/${encodeURIComponent(p.id)}`;
  part(node, 'stock').classList.toggle('low', p.available < 10);
  const button = node.querySelector('button');
  button.disabled = p.available <= 0;
  button.addEventListener('click', () => say(add(p, 1) || `${p.name} is in your basket.`));
  return node;
}

function summarise(params, { items, next }) {
  const number = Number(params.get('page') || 1);
  const about = [params.get('q') && `“${params.get('q')}”`, params.get('category')].filter(Boolean).join(' in ');
  const count = items.length === 1 ? '1 product' : `${items.length} products`;
  const place = next || number > 1 ? ` on page ${number}` : '';
  const nothing = number > 1 ? `There is no page ${number}` : 'Nothing found';
  $('summary').textContent = items.length ? `${count}${place}${about ? ` for ${about}` : ''}` : `${nothing}${about ? ` for ${about}` : ''}.`;
  $('paging').hidden = !next && number === 1;
  $('page-number').textContent = `Page ${number}`;
  turn($('previous'), number > 1 && (items.length ? number - 1 : 1));
  turn($('next'), next);
}

function turn(link, page) {
  link.classList.toggle('off', !page);
  if (page) link.href = address({ page: page > 1 ? page : '' });
  else link.removeAttribute('href'); // a link that leads nowhere cannot be reached by Tab
}

function markCategory() {
  const category = wanted().get('category') ?? '';
  for (const link of $('categories').querySelectorAll('a')) {
    link.href = address({ category: link.dataset.category, page: '' });
    link.dataset.category === category ? link.setAttribute('aria-current', 'true') : link.removeAttribute('aria-current');
  }
}

async function listCategories() {
  const chip = (label, category) => {
    const node = stamp('category');
    node.firstElementChild.textContent = label;
    node.firstElementChild.dataset.category = category;
    return node;
  };
  $('categories').replaceChildren(chip('Everything', ''));
  const { items } = await api('GET', '/api/categories').catch(() => ({ items: [] }));
  $('categories').append(...items.map((c) => chip(c, c)));
  markCategory();
}

let typing; // the timer that waits until somebody has stopped

function go(to) {
  clearTimeout(typing); // or the list would change again, under the focus
  history.pushState(null, '', to);
  show();
}

frame();
$('q').value = wanted().get('q') ?? '';
$('find').addEventListener('submit', (event) => {
  event.preventDefault();
  go(address({ q: $('q').value.trim(), page: '' }));
});
// While typing, the list follows; the history gets one entry per search, not one per letter.
$('q').addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    history.replaceState(null, '', address({ q: $('q').value.trim(), page: '' }));
    show();
  }, 250);
});
for (const links of [$('categories'), $('paging')]) {
  links.addEventListener('click', (event) => {
    const link = event.target.closest('a[href]');
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(link.getAttribute('href'));
    if (links === $('paging')) {
      scrollTo({ top: 0 });
      $('summary').focus({ preventScroll: true });
    }
  });
}
addEventListener('popstate', () => {
  $('q').value = wanted().get('q') ?? '';
  show();
});
listCategories();
show();
