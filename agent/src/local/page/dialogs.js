// @ts-check
// What stands over the page for a moment.

import { h } from './dom.js';

/** @param {HTMLDialogElement} dialog */
function open(dialog) {
  dialog.addEventListener('close', () => dialog.remove());
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * Whether the reader agrees.
 * @param {string} question
 * @param {string} words what will happen
 * @param {string} yes
 * @returns {Promise<boolean>}
 */
export function agreed(question, words, yes) {
  const dialog = h(
    'dialog',
    { class: 'dialog', 'aria-labelledby': 'question' },
    h('h2', { id: 'question' }, question),
    h('p', {}, words),
    h('form', { method: 'dialog', class: 'form-end' }, h('button', { class: 'button', value: 'no' }, 'Cancel'), h('button', { class: 'button danger', value: 'yes' }, yes)),
  );
  open(dialog);
  return new Promise((resolve) => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes')));
}

const KEYS = [
  ['j k ↓ ↑', 'next, previous request'],
  ['Enter', 'open it'],
  ['Esc', 'close, leave'],
  ['/', 'search'],
  ['g G', 'newest, oldest'],
  ['1 … 6', 'the tabs'],
  ['r', 'replay'],
  ['e', 'edit and replay'],
  ['c', 'copy as curl'],
  ['d', 'compare'],
  ['p', 'pause the list'],
  ['t', 'tunnels and sessions'],
];

const WORDS = [
  ['invoice', 'in path, host, headers, text bodies'],
  ['method:POST', 'the method'],
  ['status:5xx', 'a class, or one: status:404'],
  ['path:/api', 'in the path'],
  ['type:json', 'in the answer’s media type'],
  ['slow:500', 'took 500 ms or more'],
  ['is:websocket', 'or sse, grpc, replay, error'],
  ['tunnel:web', 'one tunnel'],
  ['-health', 'without the word'],
];

/** The keys and the search words; away again if they are there. */
export function help() {
  const there = document.querySelector('dialog.help-page');
  if (there instanceof HTMLDialogElement) {
    there.close();
    return;
  }
  const row = (/** @type {any} */ left, /** @type {string} */ right) => h('tr', {}, h('th', { scope: 'row' }, left), h('td', {}, right));
  const keys = KEYS.map(([names, words]) => row(names.split(' ').map((name) => (name === '…' ? ' … ' : h('kbd', {}, name))), words));
  const words = WORDS.map(([example, meaning]) => row(h('code', {}, example), meaning));
  open(
    h(
      'dialog',
      { class: 'dialog help-page', 'aria-labelledby': 'keys' },
      h(
        'div',
        { class: 'help-columns' },
        h('section', {}, h('h2', { id: 'keys' }, 'Keys'), h('table', {}, h('tbody', {}, keys))),
        h(
          'section',
          {},
          h('h2', {}, 'Search'),
          h('table', {}, h('tbody', {}, words)),
          h('p', { class: 'dim' }, 'All words must match. The same words work in a terminal: ', h('code', {}, 'uniroute inspect list')),
        ),
      ),
      h('form', { method: 'dialog', class: 'form-end' }, h('button', { class: 'button primary', autofocus: true }, 'Close')),
    ),
  );
}
