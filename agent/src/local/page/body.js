// @ts-check
// Bodies and headers for reading. A body is shown as text, as a tree or as bytes, never as a page; an
// image only when asked for, and only of kinds that are nothing but pixels.

import { ask, bodyPath } from './api.js';
import { bytes, button, copied, h, icon, number, plain, sayFault } from './dom.js';

/** @typedef {import('./types').Body} Body */
/** @typedef {import('./types').Field} Field */

/** Text longer than this is shown on demand only. */
const LONG = 200_000;
/** Bytes that the hex view shows. */
const HEX = 64 * 1024;
/** Nodes of a tree that are open from the start. */
const OPEN = 200;
/** Children of one node that are shown at a time. */
const CHILDREN = 100;
/** Images larger than this are for the download. */
const IMAGE = 8_000_000;

const PIXELS = ['image/png', 'image/jpeg', 'image/gif', 'image/webp', 'image/avif', 'image/bmp', 'image/x-icon', 'image/vnd.microsoft.icon'];

/** The media type in `headers`. @param {Field[]} headers */
export function mediaType(headers) {
  const field = headers.find(([name]) => name.toLowerCase() === 'content-type');
  return field ? field[1].split(';')[0].trim().toLowerCase() : '';
}

/** @param {Field[]} headers @param {string} label */
export function headerTable(headers, label) {
  const all = () => copied(headers.map(([name, value]) => `${name}: ${value}`).join('\n'), label);
  return h(
    'section',
    { class: 'block' },
    h(
      'div',
      { class: 'block-head' },
      h('h3', {}, label, h('span', { class: 'dim' }, ` ${headers.length}`)),
      headers.length > 0 && button('copy', `Copy ${label.toLowerCase()}`, all),
    ),
    headers.length === 0
      ? h('p', { class: 'dim' }, 'None.')
      : h('table', { class: 'pairs' }, h('tbody', {}, headers.map(([name, value]) => pair(name, value)))),
  );
}

/** @param {string} name @param {string} value */
function pair(name, value) {
  const hidden = /(^|[\s=;,&])\*\*\*($|[\s;,&])/.test(value);
  return h(
    'tr',
    {},
    h('th', { scope: 'row' }, plain(name)),
    h('td', { title: hidden ? 'A secret that the inspector does not show; a replay sends it as it was.' : null }, plain(value)),
  );
}

/** The query of `path` as names and values. @param {string} path */
export function queryTable(path) {
  const at = path.indexOf('?');
  if (at < 0 || at === path.length - 1) return null;
  const pairs = /** @type {Field[]} */ ([...new URLSearchParams(path.slice(at + 1))]);
  return headerTable(pairs, 'Query');
}

/** A number that JavaScript would change: kept as it was written. */
class Exact {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
  }
}

/** @param {string} text @returns {{value: any} | null} */
export function parseJson(text) {
  try {
    const exact = (/** @type {string} */ _, /** @type {any} */ value, /** @type {{source?: string} | undefined} */ context = undefined) => {
      if (typeof value !== 'number' || !context?.source || String(value) === context.source) return value;
      return new Exact(context.source);
    };
    return { value: JSON.parse(text, exact) };
  } catch {
    return null;
  }
}

/** @param {any} value @param {string} [indent] @returns {string} */
export function pretty(value, indent = '') {
  const deeper = `${indent}  `;
  if (value instanceof Exact) return value.text;
  if (Array.isArray(value)) {
    if (value.length === 0) return '[]';
    return `[\n${value.map((item) => deeper + pretty(item, deeper)).join(',\n')}\n${indent}]`;
  }
  if (value !== null && typeof value === 'object') {
    const entries = Object.entries(value);
    if (entries.length === 0) return '{}';
    return `{\n${entries.map(([name, item]) => `${deeper}${JSON.stringify(name)}: ${pretty(item, deeper)}`).join(',\n')}\n${indent}}`;
  }
  return JSON.stringify(value);
}

/** @param {any} value */
function leaf(value) {
  if (value instanceof Exact) return h('span', { class: 'json-number' }, value.text);
  if (typeof value === 'string') return h('span', { class: 'json-string' }, plain(JSON.stringify(value)));
  if (typeof value === 'number') return h('span', { class: 'json-number' }, String(value));
  return h('span', { class: 'json-word' }, String(value));
}

/**
 * @param {string | null} name
 * @param {any} value
 * @param {{left: number}} budget nodes that may still be open from the start
 * @returns {HTMLElement}
 */
function node(name, value, budget) {
  const key = name === null ? null : [h('span', { class: 'json-key' }, plain(name)), h('span', { class: 'dim' }, ': ')];
  if (value === null || typeof value !== 'object' || value instanceof Exact) return h('div', { class: 'json-leaf' }, key, leaf(value));
  const list = Array.isArray(value);
  const entries = Object.entries(value);
  const size = list ? `[${number(entries.length)}]` : `{${number(entries.length)}}`;
  if (entries.length === 0) return h('div', { class: 'json-leaf' }, key, list ? '[ ]' : '{ }');
  const inner = h('div', { class: 'json-inner' });
  const details = h('details', {}, h('summary', {}, key, h('span', { class: 'dim' }, size)), inner);
  let at = 0;
  const more = () => {
    inner.querySelector(':scope > .more')?.remove();
    for (const end = Math.min(at + CHILDREN, entries.length); at < end; at += 1) {
      inner.append(node(list ? String(at) : entries[at][0], entries[at][1], budget));
    }
    if (at < entries.length) inner.append(h('button', { type: 'button', class: 'link more', onclick: more }, `${number(entries.length - at)} more`));
  };
  budget.left -= Math.min(entries.length, CHILDREN);
  if (budget.left > 0) {
    more();
    details.open = true;
  } else {
    details.addEventListener('toggle', () => at === 0 && more());
  }
  return details;
}

/** A tree that opens and closes. @param {any} value */
export function tree(value) {
  const root = h('div', { class: 'json' });
  const open = (/** @type {boolean} */ all) => root.replaceChildren(node(null, value, { left: all ? OPEN * 20 : OPEN }));
  open(false);
  return root;
}

/** @param {Uint8Array} data */
export function hex(data) {
  const lines = [];
  for (let at = 0; at < Math.min(data.length, HEX); at += 16) {
    const part = [...data.subarray(at, at + 16)];
    const left = part.map((byte) => byte.toString(16).padStart(2, '0'));
    const right = part.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : '·')).join('');
    const bytes = `${left.slice(0, 8).join(' ').padEnd(23)}  ${left.slice(8).join(' ').padEnd(23)}`;
    lines.push(`${at.toString(16).padStart(6, '0')}  ${bytes}  ${right}`);
  }
  return h(
    'div',
    {},
    h('pre', { class: 'hex', tabindex: '0' }, lines.join('\n')),
    data.length > HEX && h('p', { class: 'dim' }, `The first ${bytes(HEX)} of ${bytes(data.length)}.`),
  );
}

/** @param {string} text @param {boolean} wrap */
export function textBlock(text, wrap) {
  const shown = plain(text.slice(0, LONG));
  const block = h('pre', { class: wrap ? 'text wrap' : 'text', tabindex: '0' }, shown);
  if (text.length <= LONG) return block;
  const rest = h('button', { type: 'button', class: 'link' }, `Show the other ${number(text.length - LONG)} characters`);
  rest.addEventListener('click', () => {
    block.append(plain(text.slice(LONG)));
    rest.remove();
  });
  return h('div', {}, block, rest);
}

/** How a reader wants text, kept while the page is open. */
const taste = { wrap: true };

/** A body, or one message, in the forms that fit it. */
class BodyView {
  /**
   * @param {{id: string, side: 'request' | 'response', body: Body, type: string}} what
   */
  constructor(what) {
    this.what = what;
    this.text = what.body.text ? (what.body.text_preview ?? '') : null;
    this.cut = what.body.preview_cut === true || what.body.kept < what.body.size;
    this.modes = this.offered();
    this.mode = this.modes[0];
    this.place = h('div', { class: 'body-place' });
    this.tabs = h('div', { class: 'segments', role: 'group', 'aria-label': 'Shown as' });
    this.element = h('section', { class: 'block' }, this.head(), this.note(), this.place);
    this.show();
  }

  offered() {
    const { type, body } = this.what;
    if (this.text === null) return PIXELS.includes(type) ? ['Image', 'Hex'] : ['Hex'];
    const json = parseJson(this.text);
    this.json = json && typeof json.value === 'object' && json.value !== null ? json : null;
    if (this.json) return ['Tree', 'Pretty', 'Raw', 'Hex'];
    if (type === 'application/x-www-form-urlencoded' && body.size > 0) return ['Fields', 'Raw', 'Hex'];
    return ['Text', 'Hex'];
  }

  head() {
    const { id, side, body, type } = this.what;
    const path = `/api/v1/${bodyPath(id, side)}`;
    const facts = [type || 'no media type', bytes(body.size), body.encoding].filter(Boolean).join(' · ');
    this.wrap = button('wrap', 'Wrap long lines', () => {
      taste.wrap = !taste.wrap;
      this.show();
    });
    return h(
      'div',
      { class: 'block-head' },
      h('h3', {}, 'Body', h('span', { class: 'dim' }, ` ${plain(facts)}`)),
      this.tabs,
      this.wrap,
      button('copy', 'Copy body', () => copied(this.whole(), 'Body')),
      h('a', { class: 'button bare', href: path, download: `${side}-${id.slice(0, 8)}.bin`, title: 'Download body', 'aria-label': 'Download body' }, icon('download')),
    );
  }

  /** All of the text that the agent can give. */
  async whole() {
    if (this.text !== null && !this.cut) return this.mode === 'Pretty' && this.json ? pretty(this.json.value) : this.text;
    const answer = await ask(`${bodyPath(this.what.id, this.what.side)}?decoded=1`);
    return answer.text();
  }

  note() {
    const { body } = this.what;
    if (body.kept < body.size) {
      return h(
        'p',
        { class: 'note' },
        `Of ${bytes(body.size)}, the first ${bytes(body.kept)} are kept. To keep whole bodies on disk: `,
        h('code', {}, 'spool = true'),
        ' in the section ',
        h('code', {}, '[agent.inspector]'),
        ' of the config file.',
      );
    }
    if (this.cut) return h('p', { class: 'note' }, 'This is the beginning. ', this.moreButton());
    return null;
  }

  moreButton() {
    const more = h('button', { type: 'button', class: 'link' }, 'Load more');
    more.addEventListener('click', async () => {
      more.disabled = true;
      try {
        const answer = await ask(`${bodyPath(this.what.id, this.what.side)}?decoded=1`);
        this.text = await answer.text();
        this.cut = answer.headers.get('x-uniroute-cut') === '1';
        this.modes = this.offered();
        this.mode = this.modes[0];
        this.show();
        if (this.cut) more.replaceWith('The download has all of it.');
        else more.closest('.note')?.remove();
      } catch (fault) {
        more.disabled = false;
        sayFault(fault);
      }
    });
    return more;
  }

  show() {
    this.tabs.hidden = this.modes.length < 2;
    this.tabs.replaceChildren(
      ...this.modes.map((mode) => {
        const press = () => {
          this.mode = mode;
          this.show();
          /** @type {HTMLElement | null} */ (this.tabs.querySelector('[aria-pressed=true]'))?.focus();
        };
        return h('button', { type: 'button', 'aria-pressed': String(mode === this.mode), onclick: press }, mode);
      }),
    );
    if (this.wrap) {
      this.wrap.hidden = !['Text', 'Raw', 'Pretty'].includes(this.mode);
      this.wrap.setAttribute('aria-pressed', String(taste.wrap));
    }
    this.place.replaceChildren(this.form());
  }

  /** @returns {HTMLElement} */
  form() {
    const text = this.text ?? '';
    switch (this.mode) {
      case 'Tree':
        return tree(this.json?.value);
      case 'Pretty':
        return textBlock(pretty(this.json?.value), taste.wrap);
      case 'Fields':
        return h('table', { class: 'pairs' }, h('tbody', {}, [...new URLSearchParams(text)].map(([name, value]) => pair(name, value))));
      case 'Hex':
        return this.later(async () => hex(await this.data()));
      case 'Image':
        return this.image();
      default:
        return textBlock(text, taste.wrap);
    }
  }

  async data() {
    const answer = await ask(`${bodyPath(this.what.id, this.what.side)}?decoded=1`);
    return new Uint8Array(await answer.arrayBuffer());
  }

  /** @param {() => Promise<HTMLElement>} make */
  later(make) {
    const waiting = h('p', { class: 'dim' }, 'Loading…');
    make().then(
      (element) => waiting.replaceWith(element),
      (fault) => {
        waiting.textContent = fault?.title ?? 'It did not load.';
        sayFault(fault);
      },
    );
    return h('div', {}, waiting);
  }

  image() {
    const { body, type } = this.what;
    if (body.size > IMAGE || body.kept < body.size) return h('p', { class: 'dim' }, 'This image is too large to be shown here, or not kept whole.');
    const show = button(null, 'Show image', () => {
      holder.replaceChildren(this.later(async () => picture(await this.data(), type)));
    }, { words: 'Show image' });
    const holder = h('div', { class: 'image' }, show);
    return holder;
  }
}

/** @param {Uint8Array} data @param {string} type one of `PIXELS` @returns {Promise<HTMLElement>} */
async function picture(data, type) {
  const reader = new FileReader();
  const done = new Promise((resolve, reject) => {
    reader.onload = resolve;
    reader.onerror = () => reject(reader.error);
  });
  reader.readAsDataURL(new Blob([/** @type {BlobPart} */ (data)], { type }));
  await done;
  const image = h('img', { alt: 'The image in this body' });
  const caption = h('figcaption', { class: 'dim' });
  image.addEventListener('load', () => (caption.textContent = `${image.naturalWidth} × ${image.naturalHeight}`));
  image.addEventListener('error', () => (caption.textContent = 'This is no image that the browser can read.'));
  image.src = String(reader.result);
  return h('figure', {}, image, caption);
}

/**
 * @param {string} id
 * @param {'request' | 'response'} side
 * @param {Body} body
 * @param {Field[]} headers
 */
export function bodyBlock(id, side, body, headers) {
  if (body.size === 0) {
    return h('section', { class: 'block' }, h('h3', {}, 'Body'), h('p', { class: 'dim' }, 'None.'));
  }
  if (body.where === 'none' || body.kept === 0) {
    return h(
      'section',
      { class: 'block' },
      h('h3', {}, 'Body', h('span', { class: 'dim' }, ` ${bytes(body.size)}`)),
      h('p', { class: 'note' }, 'Its content was not kept: this request was made when the memory for bodies was full, or bodies are not captured.'),
    );
  }
  return new BodyView({ id, side, body, type: mediaType(headers) }).element;
}

/** One message: as a tree if it is JSON, as bytes if it is no text. @param {{text?: string, base64?: string}} message */
export function messageBlock(message) {
  if (message.text !== undefined) {
    const json = parseJson(message.text);
    if (json && typeof json.value === 'object' && json.value !== null) return tree(json.value);
    return textBlock(message.text, true);
  }
  if (message.base64 !== undefined) return hex(Uint8Array.from(atob(message.base64), (char) => char.charCodeAt(0)));
  return h('p', { class: 'dim' }, 'Nothing in it.');
}
