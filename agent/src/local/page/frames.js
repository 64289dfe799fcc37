// @ts-check
// The messages of a WebSocket, an event stream or a gRPC call, while they come and after.

import { get } from './api.js';
import { messageBlock } from './body.js';
import { bytes, button, copied, counted, duration, h, line, number } from './dom.js';
import { VirtualList } from './list.js';

/** @typedef {import('./types').Frame} Frame */

/** Between questions while messages come, in milliseconds. */
const AGAIN = 500;

export class Frames {
  /** @param {import('./types').Detail} detail */
  constructor(detail) {
    this.id = detail.id;
    this.open = detail.state === 'open';
    /** @type {Frame[]} */
    this.all = [];
    this.dropped = 0;
    this.wanted = '';
    /** @type {Frame | null} */
    this.chosen = null;
    this.stop = new AbortController();
    this.find = h('input', {
      type: 'search',
      placeholder: 'Filter messages',
      'aria-label': 'Filter messages',
      autocomplete: 'off',
      spellcheck: 'false',
      oninput: () => {
        this.wanted = this.find.value.toLowerCase();
        this.show();
      },
    });
    this.facts = h('span', { class: 'dim' });
    this.host = h('div', { class: 'frame-rows', role: 'listbox', tabindex: '0', 'aria-label': 'Messages' });
    this.host.addEventListener('keydown', (event) => this.key(event));
    this.host.addEventListener('click', (event) => {
      const row = /** @type {HTMLElement} */ (event.target).closest('.frame');
      if (row) this.choose(this.list.items[Number(/** @type {HTMLElement} */ (row).dataset.index)]);
    });
    this.message = h('div', { class: 'message', hidden: true });
    this.element = h(
      'div',
      { class: 'frames' },
      h('div', { class: 'frames-head' }, this.find, this.facts),
      this.host,
      this.message,
    );
    /** @type {VirtualList<Frame>} */
    this.list = new VirtualList(this.host, makeRow, (element, frame, index) => this.fill(element, frame, index));
    this.load();
  }

  async load() {
    const { signal } = this.stop;
    try {
      for (;;) {
        const last = this.all[this.all.length - 1];
        const page = await get(`requests/${this.id}/frames${last ? `?after=${last.n}` : ''}`, signal);
        this.dropped += page.dropped;
        this.all.push(...page.frames);
        this.show();
        if (page.frames.length > 0) continue;
        if (!this.open) return;
        await new Promise((resolve) => setTimeout(resolve, AGAIN));
        if (signal.aborted) return;
      }
    } catch (fault) {
      if (!signal.aborted) this.facts.textContent = /** @type {any} */ (fault).title ?? 'The messages did not load.';
    }
  }

  /** What is new of the request. @param {import('./types').Summary} row */
  update(row) {
    this.open = row.state === 'open';
  }

  close() {
    this.stop.abort();
    this.list.watch.disconnect();
  }

  show() {
    const { list, wanted } = this;
    const atEnd = this.host.scrollTop + this.host.clientHeight >= this.host.scrollHeight - 4;
    const found = wanted
      ? this.all.filter((frame) => `${frame.kind} ${frame.event ?? ''} ${frame.text ?? ''}`.toLowerCase().includes(wanted))
      : this.all.slice();
    list.set(found);
    if (atEnd && this.open) this.host.scrollTop = this.host.scrollHeight;
    list.render();
    const size = this.all.reduce((sum, frame) => sum + frame.size, 0);
    this.facts.textContent = [
      wanted ? `${number(found.length)} of ${counted(this.all.length, 'message')}` : counted(this.all.length, 'message'),
      bytes(size),
      this.dropped ? `${number(this.dropped)} older or larger ones not kept` : '',
      this.open ? 'still open' : '',
    ].filter(Boolean).join(' · ');
  }

  /** @param {HTMLElement} element @param {Frame} frame @param {number} index */
  fill(element, frame, index) {
    element.dataset.index = String(index);
    element.id = `frame-${frame.n}`;
    element.setAttribute('aria-selected', String(frame === this.chosen));
    element.className = `frame ${frame.from} ${frame === this.chosen ? 'active' : ''}`;
    const [arrow, kind, text, size, at] = /** @type {HTMLElement[]} */ ([...element.children]);
    const up = frame.from === 'visitor';
    arrow.textContent = up ? '↑' : '↓';
    arrow.setAttribute('aria-label', up ? 'from the visitor' : 'from the local server');
    arrow.title = up ? 'From the visitor' : 'From the local server';
    kind.textContent = frame.event ? line(frame.event) : frame.kind;
    text.textContent = frame.text !== undefined ? line(frame.text) : frame.base64 !== undefined ? `${bytes(frame.size)} of bytes` : '';
    text.classList.toggle('dim', frame.text === undefined);
    size.textContent = bytes(frame.size);
    at.textContent = duration(frame.at_us);
  }

  /** @param {Frame | undefined} frame */
  choose(frame) {
    if (!frame) return;
    this.chosen = frame;
    const facts = [`#${frame.n}`, frame.kind, bytes(frame.size), `after ${duration(frame.at_us)}`, frame.id ? `id ${line(frame.id)}` : '', frame.compressed ? 'compressed' : ''];
    this.message.hidden = false;
    this.message.replaceChildren(
      h(
        'div',
        { class: 'block-head' },
        h('span', { class: 'dim grow' }, facts.filter(Boolean).join(' · ')),
        frame.text !== undefined && button('copy', 'Copy message', () => copied(frame.text ?? '', 'Message')),
        button('close', 'Close message', () => {
          this.message.hidden = true;
          this.chosen = null;
          this.list.render();
          this.host.focus();
        }),
      ),
      h('div', { class: 'message-body' }, messageBlock(frame), frame.cut && h('p', { class: 'note' }, 'This is the beginning; the rest is not kept.')),
    );
    this.host.setAttribute('aria-activedescendant', `frame-${frame.n}`);
    this.list.reveal(this.list.items.indexOf(frame));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const at = this.chosen ? this.list.items.indexOf(this.chosen) : by > 0 ? -1 : this.list.items.length;
    this.choose(this.list.items[Math.max(0, Math.min(this.list.items.length - 1, at + by))]);
  }
}

function makeRow() {
  return h(
    'div',
    { class: 'frame', role: 'option' },
    h('span', { class: 'arrow', role: 'img' }),
    h('span', { class: 'frame-kind' }),
    h('span', { class: 'frame-text' }),
    h('span', { class: 'frame-size' }),
    h('span', { class: 'frame-at' }),
  );
}
