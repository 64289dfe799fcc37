// @ts-check
// Long lists of which only the visible rows exist, and the list of requests.

import { bytes, clock, duration, h, icon, line, moment, number, outcome } from './dom.js';
import { place } from './store.js';

/** @typedef {import('./types').Summary} Summary */

/** Rows beyond each end of what is visible, for quick scrolling. */
const SPARE = 12;

/**
 * Rows of one height, of which only the visible ones are in the page.
 * @template T
 */
export class VirtualList {
  /**
   * @param {HTMLElement} host what scrolls; its `--row` is the height of a row
   * @param {() => HTMLElement} make
   * @param {(row: HTMLElement, item: T, index: number) => void} fill
   */
  constructor(host, make, fill) {
    this.host = host;
    this.make = make;
    this.fill = fill;
    /** @type {T[]} */
    this.items = [];
    /** @type {Map<number, HTMLElement>} */
    this.shown = new Map();
    this.row = 32;
    this.height = 0;
    this.room = h('div', { class: 'room', role: 'presentation' });
    host.append(this.room);
    host.addEventListener('scroll', () => this.render(), { passive: true });
    this.watch = new ResizeObserver(() => this.measure());
    this.watch.observe(host);
  }

  measure() {
    // For what stands above, in line with the rows.
    this.host.parentElement?.style.setProperty('--bar', `${this.host.offsetWidth - this.host.clientWidth}px`);
    const top = this.host.scrollTop / this.row;
    const row = parseFloat(getComputedStyle(this.host).getPropertyValue('--row')) || this.row;
    this.height = this.host.clientHeight;
    if (row !== this.row) {
      this.row = row;
      for (const element of this.shown.values()) element.remove();
      this.shown.clear();
      this.size();
      this.host.scrollTop = top * row;
    }
    this.render();
  }

  size() {
    this.room.style.height = `${this.items.length * this.row}px`;
  }

  /** @param {T[]} items */
  set(items) {
    const same = items.length === this.items.length;
    this.items = items;
    if (!same) this.size();
  }

  render() {
    const top = this.host.scrollTop;
    const first = Math.max(0, Math.floor(top / this.row) - SPARE);
    const last = Math.min(this.items.length, Math.ceil((top + this.height) / this.row) + SPARE);
    const free = [];
    for (const [index, element] of this.shown) {
      if (index >= first && index < last) continue;
      this.shown.delete(index);
      free.push(element);
    }
    for (let index = first; index < last; index += 1) {
      let element = this.shown.get(index);
      if (!element) {
        element = free.pop() ?? this.make();
        this.shown.set(index, element);
        element.style.transform = `translateY(${index * this.row}px)`;
        if (!element.parentNode) this.room.append(element);
      }
      this.fill(element, this.items[index], index);
    }
    for (const element of free) element.remove();
  }

  /** Scrolls no further than it must. @param {number} index */
  reveal(index) {
    const top = index * this.row;
    if (top < this.host.scrollTop) this.host.scrollTop = top;
    else if (top + this.row > this.host.scrollTop + this.height) this.host.scrollTop = top + this.row - this.height;
    this.render();
  }
}

const COLUMNS = [
  ['method', 'Method'],
  ['path', 'Path'],
  ['status', 'Status'],
  ['type', 'Type'],
  ['size', 'Size'],
  ['time', 'Time'],
  ['tunnel', 'Tunnel'],
  ['when', 'When'],
];

const KINDS = { websocket: 'WS', sse: 'SSE', grpc: 'gRPC', http: '' };

/** A media type in a word: what tells it from others. @param {string} type */
export function shortType(type) {
  const name = type.replace(/^(application|text|image|audio|video|font)\//, '').replace(/^(x-|vnd\.)/, '');
  const known = { 'www-form-urlencoded': 'form', 'octet-stream': 'binary', 'event-stream': 'events', 'svg+xml': 'svg', plain: 'text' };
  return known[/** @type {keyof typeof known} */ (name)] ?? name;
}

/** The requests. What the reader looks at stays where it is while new ones come in above. */
export class RequestList {
  /** @param {HTMLElement} host @param {{choose(row: Summary, how: 'mouse' | 'key'): void}} handler */
  constructor(host, handler) {
    this.handler = handler;
    /** Where the keys are. @type {string | null} */
    this.active = null;
    /** What the reader has seen of the top. */
    this.seen = 0;
    this.head = h(
      'div',
      { class: 'row head', role: 'row', 'aria-rowindex': '1' },
      COLUMNS.map(([name, label]) => h('span', { class: `cell ${name}`, role: 'columnheader' }, label)),
    );
    this.host = h('div', { class: 'rows', role: 'rowgroup', tabindex: '-1' });
    this.grid = h(
      'div',
      { class: 'grid', role: 'grid', tabindex: '0', 'aria-label': 'Requests, newest first', 'aria-readonly': 'true' },
      this.head,
      this.host,
    );
    this.chip = h('button', { type: 'button', class: 'chip', hidden: true, onclick: () => this.toTop() });
    this.empty = h('div', { class: 'empty', hidden: true });
    host.append(this.grid, this.empty, this.chip);
    this.list = new VirtualList(this.host, makeRow, (element, row, index) => this.fill(element, row, index));
    this.host.addEventListener('scroll', () => this.look(), { passive: true });
    this.host.addEventListener('pointerdown', (event) => {
      this.pressed = this.rowAt(event);
    });
    // The row that was pressed, even if another has come under the pointer since.
    this.host.addEventListener('click', () => {
      if (this.pressed) this.handler.choose(this.pressed, 'mouse');
    });
  }

  /** @param {Event} event */
  rowAt(event) {
    const element = /** @type {HTMLElement} */ (event.target).closest('.row');
    return element && this.list.items[Number(/** @type {HTMLElement} */ (element).dataset.index)];
  }

  /** @param {HTMLElement} element @param {Summary} row @param {number} index */
  fill(element, row, index) {
    const state = `${row.id} ${row.rev} ${index} ${row.id === this.active}`;
    if (element.dataset.state === state) return;
    element.dataset.state = state;
    element.dataset.index = String(index);
    element.id = `row-${row.id}`;
    element.setAttribute('aria-rowindex', String(index + 2));
    element.setAttribute('aria-selected', String(row.id === this.active));
    const { tone, text } = outcome(row);
    element.className = `row ${tone} ${row.id === this.active ? 'active' : ''}`;
    const [method, path, status, type, size, time, tunnel, when] = /** @type {HTMLElement[]} */ ([...element.children]);
    method.textContent = line(row.method);
    method.className = `cell method ${['GET', 'HEAD', 'OPTIONS'].includes(row.method) ? '' : 'strong'}`;
    const [replay, words, kind] = /** @type {HTMLElement[]} */ ([...path.children]);
    replay.hidden = row.replay_of === null;
    words.textContent = line(row.path);
    path.title = line(row.path);
    kind.textContent = KINDS[row.kind] ?? '';
    kind.hidden = kind.textContent === '';
    status.textContent = text;
    status.title = row.error === null ? '' : line(row.error);
    type.textContent = line(shortType(row.type));
    type.title = line(row.type);
    size.textContent = row.status === null ? '' : bytes(row.response_size);
    time.textContent = row.state === 'open' ? '…' : duration(row.duration_us);
    tunnel.textContent = line(row.tunnel);
    when.textContent = clock(row.started_ms);
    when.title = moment(row.started_ms);
  }

  /**
   * @param {Summary[]} view
   * @param {boolean} anew another search: begins at the top
   */
  show(view, anew = false) {
    const { list, host } = this;
    const top = host.scrollTop;
    let scroll = null;
    if (anew) {
      scroll = 0;
    } else if (top > 0 && list.items !== view) {
      const index = Math.min(Math.floor(top / list.row), list.items.length - 1);
      const anchor = list.items[index];
      if (anchor) scroll = place(view, anchor.seq) * list.row + (top - index * list.row);
    }
    list.set(view);
    if (scroll !== null && scroll !== top) host.scrollTop = scroll;
    list.render();
    this.grid.setAttribute('aria-rowcount', String(view.length + 1));
    this.mark();
    this.look();
  }

  look() {
    const { list, host } = this;
    const newest = list.items[0]?.seq ?? 0;
    if (host.scrollTop < list.row) this.seen = newest;
    if (this.seen > newest) this.seen = newest;
    const count = place(list.items, this.seen);
    this.chip.hidden = count === 0;
    if (count > 0 && this.chip.dataset.count !== String(count)) {
      this.chip.dataset.count = String(count);
      this.chip.replaceChildren(icon('up'), `${number(count)} new`);
    }
  }

  /** @param {string | null} id @param {boolean} reveal */
  mark(id = this.active, reveal = false) {
    this.active = id;
    if (reveal && id !== null) {
      const index = this.list.items.findIndex((row) => row.id === id);
      if (index >= 0) this.list.reveal(index);
    }
    this.list.render();
    const there = id !== null && document.getElementById(`row-${id}`);
    if (there) this.grid.setAttribute('aria-activedescendant', there.id);
    else this.grid.removeAttribute('aria-activedescendant');
  }

  toTop() {
    this.host.scrollTop = 0;
    this.list.render();
    this.look();
    this.grid.focus({ preventScroll: true });
  }

  /** The request `by` rows from the active one. @param {number} by @param {Summary | undefined} from */
  beside(by, from) {
    const { items } = this.list;
    if (!from) return by > 0 ? items[Math.min(items.length - 1, Math.max(0, Math.ceil(this.host.scrollTop / this.list.row)))] : items[0];
    const index = place(items, from.seq);
    const there = items[index]?.id === from.id;
    const target = there || by < 0 ? index + by : index + by - 1;
    return items[Math.max(0, Math.min(items.length - 1, target))];
  }

  page() {
    return Math.max(1, Math.floor(this.list.height / this.list.row) - 1);
  }

  /** Instead of rows. @param {HTMLElement | null} words */
  instead(words) {
    this.empty.hidden = words === null;
    this.grid.hidden = words !== null;
    if (words === null) this.empty.replaceChildren();
    else this.empty.replaceChildren(words);
  }
}

function makeRow() {
  const cells = COLUMNS.map(([name]) => h('span', { class: `cell ${name}`, role: 'gridcell' }));
  cells[1].append(
    h('span', { class: 'again', hidden: true, title: 'A replay' }, icon('replay')),
    h('span', { class: 'words' }),
    h('span', { class: 'kind', hidden: true }),
  );
  return h('div', { class: 'row', role: 'row' }, cells);
}
