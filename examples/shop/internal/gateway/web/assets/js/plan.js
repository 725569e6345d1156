// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// The order's saga as people can read it. The steps and their order are those of the order service's
// place.go; a step that is not known here shows only in the list of every moment.

export const placing = [
  { step: 'reserve-credit', title: 'Hold the amount against your credit', who: 'customer', undo: 'given back' },
  { step: 'reserve-stock', title: 'Put the articles aside', who: 'inventory', undo: 'put back on the shelf' },
  { step: 'authorise-payment', title: 'Have the money held by the payment provider', who: 'payment', undo: 'let go' },
  { step: 'capture-payment', title: 'Take the money', who: 'payment', pivot: true },
  { step: 'sell-stock', title: 'Book the articles as sold', who: 'inventory' },
  { step: 'confirm-order', title: 'Confirm the order and tell everybody', who: 'order' },
  { step: 'settle-credit', title: 'Free the credit again', who: 'customer' },
];

export const cancelling = [
  { step: 'await-confirmed', title: 'Wait until the order is confirmed', who: 'order' },
  { step: 'stop-shipment', title: 'Keep the parcel back', who: 'shipping', undo: 'let go' },
  { step: 'refund-payment', title: 'Give the money back', who: 'payment' },
  { step: 'restock', title: 'Put the articles back on the shelf', who: 'inventory' },
  { step: 'mark-cancelled', title: 'Mark the order cancelled and tell everybody', who: 'order' },
];

const reasons = {
  declined: 'the card was declined',
  'insufficient-funds': 'there is not enough money in the account',
  'credit-limit': 'the order is above your free credit',
  'out-of-stock': 'not enough of it is in stock',
  dispatched: 'the parcel has left',
};

// inWords says a reason as a person would. A step's own detail has "refused: " before the reason.
export function inWords(reason) { return reasons[reason.replace(/^refused: /, '')] ?? reason; }

// fold makes of the recorded moments what became of each step: {state, tries, at, detail} by
// the step's name. State is "done", "failed" (and tried again) or "refused".
export function fold(moments) {
  const steps = new Map();
  for (const { at, what, detail } of moments) {
    const [, name, state] = /^(.+) (done|failed|refused)$/.exec(what) ?? [];
    if (!name) continue; // an event of the order itself
    steps.set(name, { state, at, detail, tries: (steps.get(name)?.tries ?? 0) + 1 });
  }
  return steps;
}
