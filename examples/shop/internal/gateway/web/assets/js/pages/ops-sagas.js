// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The list of sagas, kept up to date.

import { api } from '../api.js';
import { $, fill, part, set, stamp } from '../dom.js';
import { sentence, whole } from '../format.js';
import { frame } from '../frame.js';
import { keep, listen } from '../live.js';
import { operators } from '../operator.js';
import { clock } from '../units.js';

const page = 100; // what the API gives at once
let pages = 1; // that are looked at

function query(after) {
  const q = new URLSearchParams();
  for (const [name, value] of [['name', $('name').value], ['status', $('status').value], ['id', $('begins').value.trim()], ['stuck', $('stuck').checked && 'true'], ['after', after]]) {
    if (value) q.set(name, value);
  }
  return `/ops/api/sagas?${q}`;
}

// look reads every page anew: of what was shown before, anything may have changed or moved on to the next page.
async function look() {
  const all = [];
  let more = true;
  while (more && all.length < pages * page) {
    const { items } = await api('GET', query(all.at(-1)?.id), { once: true });
    all.push(...items);
    more = items.length === page;
  }
  $('more').hidden = !more;
  $('table').hidden = all.length === 0;
  set($('none'), all.length === 0 ? 'There is none such.' : `${whole(all.length)}${$('more').hidden ? '' : ' or more'}, the newest first`);
  fill($('sagas'), all, row, (s) => s.id);
}

function row(s) {
  const status = s.stuck ? 'stuck' : s.status;
  const node = stamp('saga-row', { name: s.name, id: s.id, status, step: s.step ?? '', attempt: s.attempt || '', reason: s.stuck || s.reason ? sentence(s.stuck || s.reason) : '', updated: clock(s.updated) });
  part(node, 'id').href = `/ops/sagas/${encodeURIComponent(s.id)}`;
  part(node, 'status').dataset.status = status;
  return node;
}

if (operators()) {
  frame();
  const asked = new URLSearchParams(location.search);
  $('stuck').checked = asked.get('stuck') === 'true';
  $('status').value = asked.get('status') ?? '';
  const now = keep(look, 'changed');
  listen();
  const again = () => {
    pages = 1;
    now();
  };
  for (const id of ['name', 'status', 'stuck']) $(id).addEventListener('change', again);
  $('begins').addEventListener('input', again);
  $('filter').addEventListener('submit', (event) => event.preventDefault());
  $('more').addEventListener('click', () => {
    pages++;
    now();
  });
}
