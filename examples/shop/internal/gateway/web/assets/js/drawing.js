// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Which drawing of tools.svg shows a product: that of its article, the part of its name before the
// comma; else a joint. The category colours the ground, the finish after the comma the handles.

const drawn = new Set(['dovetail-saw', 'bench-chisel', 'mortise-chisel', 'marking-gauge', 'block-plane', 'coping-saw', 'spokeshave',
  'bar-clamp', 'bench-vice', 'holdfast', 'spring-clamp', 'combination-square', 'steel-rule', 'sliding-bevel', 'dial-caliper',
  'hard-wax-oil', 'sanding-block', 'card-scraper', 'brass-hinge', 'drawer-runner', 'wood-screw-box', 'oak-board', 'walnut-board', 'beech-dowel']);

const grounds = { 'Hand tools': 'oak', Workholding: 'walnut', Measuring: 'ash', Finishing: 'cherry', Hardware: 'steel', Timber: 'beech' };

// draw puts the drawing of a product into a .picture.
export function draw(picture, { name = '', category = '' }) {
  const [article, finish] = name.split(',').map((s) => s.trim().toLowerCase().replaceAll(' ', '-'));
  picture.querySelector('use').setAttribute('href', `/assets/tools.svg#${drawn.has(article) ? article : 'joint'}`);
  picture.dataset.ground = grounds[category] ?? 'ash';
  picture.dataset.finish = finish ?? '';
}
