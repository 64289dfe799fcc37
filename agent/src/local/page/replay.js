// @ts-check
// A request again, changed: what is not touched is sent as it was, hidden secrets included.

import { ask, bodyPath } from './api.js';
import { bytes, h, plain, sayFault } from './dom.js';

/** @typedef {import('./types').Field} Field */

const METHODS = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS'];

/** @param {Field[]} headers */
function asText(headers) {
  return headers.map(([name, value]) => `${name}: ${value}`).join('\n');
}

/** @param {string} text @returns {Field[]} */
export function asHeaders(text) {
  return text
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map((line) => {
      const colon = line.indexOf(':', 1);
      if (colon < 0) throw new Error(`“${line.trim().slice(0, 60)}” is no header: write it as “name: value”.`);
      return [line.slice(0, colon).trim(), line.slice(colon + 1).trim()];
    });
}

/** A form that keeps what was typed as long as its request is open in the page. */
export class ReplayForm {
  /** @param {import('./types').Detail} detail @param {import('./types').App} app */
  constructor(detail, app) {
    this.detail = detail;
    this.app = app;
    const { request } = detail;
    this.headers = asText(request.headers.map(([name, value]) => [plain(name), plain(value)]));
    /** The body's text once it is edited. @type {string | null} */
    this.body = null;
    this.methodField = h('input', { id: 'replay-method', class: 'mono', value: detail.method, list: 'methods', autocomplete: 'off', spellcheck: 'false', required: true });
    this.pathField = h('input', { id: 'replay-path', class: 'mono', value: detail.path, autocomplete: 'off', spellcheck: 'false', required: true });
    this.serverField = h('input', { id: 'replay-server', class: 'mono', placeholder: detail.upstream ?? 'http://localhost:3000', autocomplete: 'off', spellcheck: 'false' });
    this.headersField = h('textarea', { id: 'replay-headers', class: 'mono', rows: String(Math.min(12, Math.max(4, request.headers.length + 1))), spellcheck: 'false', value: this.headers });
    this.bodyPlace = h('div', {});
    this.fault = h('p', { class: 'fault', role: 'alert', hidden: true });
    this.send = h('button', { type: 'submit', class: 'button primary' }, 'Send');
    this.element = h(
      'form',
      { class: 'form', onsubmit: (/** @type {Event} */ event) => this.submit(event) },
      h('datalist', { id: 'methods' }, METHODS.map((method) => h('option', { value: method }))),
      h('div', { class: 'form-line' }, labelled('Method', this.methodField), labelled('Path', this.pathField)),
      labelled('Local server', this.serverField, 'Empty: the same one. Any address that this machine reaches, such as http://localhost:4000.'),
      labelled('Headers', this.headersField, 'One a line. *** is a secret that is not shown: left as it is, its real value is sent.'),
      this.bodyPlace,
      this.fault,
      h('div', { class: 'form-end' }, this.send, h('span', { class: 'dim' }, 'It goes straight to the local server. Ctrl+Enter sends.')),
    );
    this.element.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.element.requestSubmit();
    });
    this.unchanged();
  }

  /** Puts the cursor where most changes are made. */
  begin() {
    this.headersField.focus();
    this.headersField.setSelectionRange(0, 0);
  }

  /** The body as it was. */
  unchanged() {
    const { body } = this.detail.request;
    this.body = null;
    this.bodyField = undefined;
    const edit = h('button', { type: 'button', class: 'button', onclick: () => this.edit() }, body.size === 0 ? 'Add a body' : 'Edit');
    const words = body.size === 0 ? 'None.' : `As it was: ${bytes(body.size)}.`;
    this.bodyPlace.replaceChildren(
      h('div', { class: 'labelled' }, h('span', { class: 'label' }, 'Body'), h('div', { class: 'form-body' }, h('span', { class: 'dim' }, words), edit)),
    );
  }

  async edit() {
    const { id, request } = this.detail;
    let text = '';
    try {
      if (request.body.size > 0) {
        if (!request.body.text) throw new Error('This body is no text. It can be replayed as it was, or replaced by an empty one here.');
        const answer = await ask(`${bodyPath(id, 'request')}?decoded=1`);
        text = await answer.text();
        if (request.body.kept < request.body.size || answer.headers.get('x-uniroute-cut') === '1') {
          throw new Error('Only the beginning of this body is here, so that an edited one would be cut.');
        }
      }
    } catch (fault) {
      sayFault(fault);
      text = '';
    }
    this.bodyField = h('textarea', { id: 'replay-body', class: 'mono', rows: '10', spellcheck: 'false', value: text });
    this.body = text;
    const back = h('button', { type: 'button', class: 'link', onclick: () => this.unchanged() }, 'As it was');
    this.bodyPlace.replaceChildren(labelled('Body', this.bodyField), back);
    this.bodyField.focus();
  }

  /** Only what was changed. */
  change() {
    /** @type {Record<string, any>} */
    const change = {};
    const { detail } = this;
    const server = this.serverField.value.trim();
    if (server) change.upstream = /^[a-z]+:/i.test(server) ? server : `http://${server}`;
    if (this.methodField.value.trim() !== detail.method) change.method = this.methodField.value.trim().toUpperCase();
    if (this.pathField.value !== detail.path) change.path = this.pathField.value;
    if (this.headersField.value !== this.headers) change.headers = asHeaders(this.headersField.value);
    if (this.bodyField) change.body = this.bodyField.value;
    return change;
  }

  /** @param {Event} event */
  async submit(event) {
    event.preventDefault();
    this.fault.hidden = true;
    this.send.disabled = true;
    this.send.textContent = 'Sending…';
    try {
      await this.app.replay(this.detail.id, this.change());
    } catch (fault) {
      const { title, message, detail } = /** @type {any} */ (fault);
      this.fault.textContent = plain([title ?? message, detail].filter(Boolean).join(': '));
      this.fault.hidden = false;
    }
    this.send.disabled = false;
    this.send.textContent = 'Send';
  }
}

/** @param {string} label @param {HTMLElement} field @param {string} [hint] */
function labelled(label, field, hint) {
  const id = hint ? `${field.id}-hint` : null;
  if (id) field.setAttribute('aria-describedby', id);
  return h('div', { class: 'labelled' }, h('label', { class: 'label', for: field.id }, label), field, hint && h('p', { class: 'hint', id }, hint));
}
