// @ts-check
// The inspector's page: puts the parts together, keeps its state in the address, hears the keys.

import { Live, ask, change, get } from './api.js';
import { DetailPane, TABS } from './detail.js';
import { agreed, help } from './dialogs.js';
import { button, copied, counted, h, line, sayFault, toast } from './dom.js';
import { Header, short } from './header.js';
import { RequestList } from './list.js';
import { Store } from './store.js';
import { Toolbar } from './toolbar.js';

/** @typedef {import('./types').Summary} Summary */

/** Requests that a comparison offers. */
const ALIKE = 20;

const at = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));

class Page {
  constructor() {
    /** @type {import('./types').Status | null} */
    this.status = null;
    this.live = 'connecting';
    this.why = '';
    /** @type {string | null} */
    this.id = null;
    this.tabName = 'overview';
    /** @type {string | null} */
    this.other = null;
    /** The request whose comparison waits for one from the list. @type {string | null} */
    this.picking = null;
    /** @type {string | null} what stands in the place of the list */
    this.insteadState = null;
    /** Another search since the list was drawn. */
    this.anew = false;
    this.drawing = false;
    /** @type {Summary[]} */
    this.pending = [];
    this.store = new Store(() => this.soon());
    this.header = new Header(
      { header: at('header'), panel: at('panel'), banner: at('banner') },
      { retry: () => this.stream.start(), record: (on) => this.record(on), help },
    );
    this.toolbar = new Toolbar(at('toolbar'), this);
    this.list = new RequestList(at('list'), { choose: (row, how) => this.choose(row, how) });
    this.detail = new DetailPane(at('detail'), this);
    this.stream = new Live({
      opened: () => this.opened(),
      request: (row) => this.arrived(row),
      status: (status) => this.heard(status),
      reset: () => this.store.catchUp(),
      state: (state, why) => {
        this.live = state;
        this.why = why;
        document.body.classList.toggle('gone', state === 'gone');
        this.header.show(this.status, state, why);
        this.soon();
      },
    });
    this.buildSplit();
    // The address is the page's state: the link must not change it.
    document.querySelector('.skip')?.addEventListener('click', (event) => {
      event.preventDefault();
      this.list.grid.focus();
    });
    addEventListener('hashchange', () => this.fromAddress());
    document.addEventListener('keydown', (event) => this.key(event));
    this.fromAddress();
    this.stream.start();
    // The list is there even if the stream takes its time.
    this.opened();
  }

  // What comes in.

  async opened() {
    this.store.load();
    try {
      this.heard(await get('status'));
    } catch {
      // The stream says so.
    }
  }

  /** @param {import('./types').Status} status */
  heard(status) {
    if (this.status && this.status.started_ms !== status.started_ms) {
      // Another agent: the requests of the one before are no longer kept.
      this.store.clear();
      this.store.load();
    }
    // Events may come without the part about what is kept.
    this.status = { ...status, inspector: status.inspector ?? this.status?.inspector };
    this.store.keep = this.status.inspector?.max_requests ?? this.store.keep;
    this.header.show(this.status, this.live, this.why);
    this.toolbar.showTunnels(status);
    this.soon();
  }

  /** @param {Summary} row */
  arrived(row) {
    this.pending.push(row);
    this.soon();
  }

  /** Draws at the next frame, once for all that came until then. */
  soon() {
    if (this.drawing) return;
    this.drawing = true;
    if (document.visibilityState === 'visible') requestAnimationFrame(() => this.draw());
    else setTimeout(() => this.draw(), 200);
  }

  draw() {
    const { store, list, status } = this;
    this.drawing = false;
    if (this.pending.length > 0) {
      const events = this.pending;
      this.pending = [];
      store.take(events);
      for (const row of events) this.detail.update(row);
    }
    list.show(store.view, this.anew);
    this.anew = false;
    list.instead(this.instead());
    this.toolbar.showFigures(store, status);
  }

  /** What stands in the place of the list. @returns {HTMLElement | null} */
  instead() {
    const { store, status } = this;
    if (store.view.length > 0) {
      this.insteadState = null;
      return null;
    }
    const [tunnel] = status?.tunnels ?? [];
    const state = JSON.stringify([store.q, store.loaded, store.loading, store.fault?.title, this.live, tunnel?.url, tunnel?.upstreams, status?.inspector?.recording]);
    if (state === this.insteadState) return /** @type {HTMLElement | null} */ (at('list').querySelector('.empty > *'));
    this.insteadState = state;
    if (store.q && store.loaded) {
      return h(
        'div',
        { class: 'hint-page' },
        h('h2', {}, 'Nothing matches'),
        h('p', {}, 'No request that is kept has ', h('code', {}, line(store.q)), ' in it.'),
        h('p', {}, button(null, 'Clear the search', () => this.search(''), { words: 'Clear the search', class: 'primary' }), button(null, 'Search words', () => help(), { words: 'Search words' })),
      );
    }
    if (!store.loaded) {
      if (this.live === 'gone') return h('div', { class: 'hint-page' }, h('h2', {}, 'No agent'), h('p', {}, 'Start it in a terminal, for example: ', h('code', {}, 'uniroute http 3000')));
      if (store.fault) return h('div', { class: 'hint-page' }, h('h2', {}, 'No requests to show'), h('p', {}, line(store.fault.title)));
      return h('div', { class: 'hint-page quiet' }, h('p', { class: 'dim' }, 'Loading…'));
    }
    return this.welcome(tunnel);
  }

  /** @param {import('./types').Tunnel | undefined} tunnel */
  welcome(tunnel) {
    if (!tunnel) return h('div', { class: 'hint-page' }, h('h2', {}, 'No tunnel yet'), h('p', {}, 'Tunnels of the config file begin with ', h('code', {}, 'uniroute start --all')));
    const command = `curl -i ${tunnel.url}`;
    const server = tunnel.upstreams[0]?.url ?? '';
    const web = /^https?:/.test(tunnel.url);
    return h(
      'div',
      { class: 'hint-page' },
      h('h2', {}, 'Waiting for the first request'),
      tunnel.url
        ? [
            h('p', {}, 'Visitors of this address are answered by ', server ? h('code', {}, short(server)) : 'your machine'),
            h('p', { class: 'hero' }, h('span', { class: 'mono' }, line(tunnel.url)), button('copy', 'Copy address', () => copied(tunnel.url, 'Address'))),
            web && h('p', {}, 'Open it in a browser, or in a terminal:'),
            web && h('p', { class: 'command' }, h('code', {}, line(command)), button('copy', 'Copy command', () => copied(command, 'Command'))),
          ]
        : h('p', {}, 'The tunnel has no address yet.'),
      h('p', { class: 'dim' }, 'Each request shows up here the moment it comes in.'),
    );
  }

  // What is chosen.

  /** @param {Summary} row @param {'mouse' | 'key'} how */
  choose(row, how) {
    if (this.picking && row.id !== this.picking) {
      const id = this.picking;
      this.stopPicking();
      this.compare(id, row.id);
      return;
    }
    this.select(row.id, { push: how === 'mouse' || this.id === null });
  }

  /**
   * @param {string | null} id
   * @param {{tab?: string, push?: boolean, other?: string | null}} [options]
   */
  select(id, options = {}) {
    const tab = options.tab ?? (this.id === null ? 'overview' : this.tabName);
    // A comparison and messages belong to one request; headers and bodies are looked through.
    const keep = options.tab !== undefined || !['diff', 'replay'].includes(tab) || id === this.id;
    const push = options.push ?? id === null;
    this.setAddress({ id, tab: keep ? tab : 'overview', other: options.other ?? null }, push);
  }

  /** @param {string} name */
  tab(name) {
    const id = this.id ?? this.list.active;
    if (id === null) return;
    this.setAddress({ id, tab: name, other: name === 'diff' && id === this.id ? this.other : null }, this.id === null);
  }

  /** @param {string} id @param {string | null} other */
  compare(id, other) {
    this.setAddress({ id, tab: 'diff', other }, id !== this.id);
  }

  /** The next request that is chosen in the list is compared with `id`. @param {string} id */
  pick(id) {
    this.picking = id;
    document.body.classList.add('picking');
    toast('Choose the request to compare with', { detail: 'With a click, or with the arrow keys and Enter. Esc leaves it.' });
    this.list.grid.focus();
  }

  stopPicking() {
    this.picking = null;
    document.body.classList.remove('picking');
  }

  /** @param {string} id */
  find(id) {
    return this.store.byId.get(id);
  }

  /** Requests that are worth a comparison with `row`: the original, replays, then the same path. @param {Summary} row */
  alike(row) {
    const path = row.path.split('?')[0];
    const near = this.store.rows.filter((other) => other.id !== row.id && (other.id === row.replay_of || other.replay_of === row.id || (other.method === row.method && other.path.split('?')[0] === path)));
    const rank = (/** @type {Summary} */ other) => (other.id === row.replay_of ? 0 : other.replay_of === row.id ? 1 : 2);
    return near.sort((a, b) => rank(a) - rank(b) || b.seq - a.seq).slice(0, ALIKE);
  }

  // What is done.

  /** @param {string} id @param {object} [change_] */
  async replay(id, change_ = {}) {
    try {
      const made = await change('POST', `requests/${id}/replay`, change_);
      toast('Replayed');
      this.select(made.id, { tab: 'overview', push: true });
      this.list.mark(made.id, true);
    } catch (fault) {
      sayFault(fault);
      throw fault;
    }
  }

  /** @param {string} id */
  async curl(id) {
    await copied(ask(`requests/${id}/curl`).then((answer) => answer.text()), 'curl command');
  }

  /** @param {boolean} on */
  async record(on) {
    try {
      await change('POST', 'recording', { on });
      this.heard(await get('status'));
    } catch (fault) {
      sayFault(fault);
    }
  }

  async forget() {
    if (!(await agreed(`Forget ${counted(this.store.rows.length, 'request')}?`, 'They are removed from the agent. This cannot be undone; a HAR file keeps them.', 'Forget all'))) return;
    try {
      await change('DELETE', 'requests');
      this.select(null);
      this.store.clear();
      this.store.load();
    } catch (fault) {
      sayFault(fault);
    }
  }

  pause() {
    this.store.pause(this.store.until === null);
    this.toolbar.showPause(this.store.until !== null);
  }

  /** @param {string} q */
  search(q) {
    this.setAddress({ q }, false);
  }

  // The address.

  /** @param {{id?: string | null, tab?: string, other?: string | null, q?: string}} change_ @param {boolean} push */
  setAddress(change_, push) {
    const next = { id: this.id, tab: this.tabName, other: this.other, q: this.store.q, ...change_ };
    const parts = new URLSearchParams();
    if (next.q) parts.set('q', next.q);
    if (next.id) {
      parts.set('id', next.id);
      if (next.tab !== 'overview') parts.set('tab', next.tab);
      if (next.other && next.tab === 'diff') parts.set('with', next.other);
    }
    const hash = `#${parts}`;
    if (hash !== (location.hash || '#')) {
      if (push) history.pushState(null, '', hash);
      else history.replaceState(null, '', hash);
    }
    this.fromAddress();
  }

  fromAddress() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const q = parts.get('q') ?? '';
    if (q !== this.store.q) {
      this.anew = true;
      this.store.setQuery(q);
    }
    this.toolbar.showWords(q);
    const asked = parts.get('id');
    const id = asked && /^[0-9a-f]{1,64}$/i.test(asked) ? asked : null;
    const tab = parts.get('tab') ?? 'overview';
    const moved = id !== this.id;
    this.id = id;
    this.tabName = TABS.includes(tab) ? tab : 'overview';
    const other = parts.get('with');
    this.other = other && /^[0-9a-f]{1,64}$/i.test(other) ? other : null;
    this.showDetail(moved);
  }

  /** @param {boolean} moved */
  showDetail(moved) {
    const open = this.id !== null;
    const was = !at('detail').hidden;
    at('detail').hidden = !open;
    at('split').hidden = !open;
    document.body.classList.toggle('has-detail', open);
    if (this.id !== null) this.detail.open(this.id, this.store.byId.get(this.id), this.tabName, this.other);
    else if (was) this.detail.close();
    if (open !== was) this.list.list.measure();
    if (moved) this.list.mark(this.id ?? this.list.active, true);
    if (moved && was && !open) this.list.grid.focus({ preventScroll: true });
    // On a narrow page the list is not there: the keys go to what is.
    if (moved && open && at('list').offsetParent === null && !at('detail').contains(document.activeElement)) this.detail.panel.focus();
  }

  // The width of the list.

  buildSplit() {
    const split = at('split');
    const main = at('main');
    const set = (/** @type {number} */ share) => {
      this.share = Math.max(25, Math.min(75, share));
      main.style.setProperty('--share', `${this.share}%`);
      split.setAttribute('aria-valuenow', String(Math.round(this.share)));
      try {
        localStorage.setItem('uniroute.share', String(this.share));
      } catch {
        // Not kept then.
      }
    };
    let kept = NaN;
    try {
      kept = Number(localStorage.getItem('uniroute.share') ?? NaN);
    } catch {
      // None.
    }
    set(kept > 0 ? kept : 48);
    split.addEventListener('pointerdown', (event) => {
      split.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    split.addEventListener('pointermove', (event) => {
      if (!split.hasPointerCapture(event.pointerId)) return;
      const box = main.getBoundingClientRect();
      set(((event.clientX - box.left) / box.width) * 100);
    });
    split.addEventListener('keydown', (event) => {
      const by = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      set((this.share ?? 48) + by);
    });
  }

  // The keys.

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (document.querySelector('dialog[open]')) {
      if (event.key === '?') help();
      return;
    }
    const target = /** @type {HTMLElement} */ (event.target);
    if (target.matches('input, textarea, select')) {
      this.keyInField(event, target);
      return;
    }
    if (this.act(event, target)) event.preventDefault();
  }

  /** @param {KeyboardEvent} event @param {HTMLElement} target */
  keyInField(event, target) {
    if (event.key === 'Escape') {
      if (target === this.toolbar.field && this.toolbar.field.value) this.search('');
      else if (target !== this.toolbar.field && this.id !== null) this.detail.panel.focus();
      else this.list.grid.focus();
      event.preventDefault();
    } else if (target === this.toolbar.field && (event.key === 'ArrowDown' || event.key === 'Enter')) {
      this.list.grid.focus();
      if (event.key === 'ArrowDown') this.move(1);
      event.preventDefault();
    }
  }

  /** @param {KeyboardEvent} event @param {HTMLElement} target */
  act(event, target) {
    const scrolls = at('detail').contains(target) || at('panel').contains(target);
    const id = this.id ?? this.list.active;
    switch (event.key) {
      case 'j':
        return this.move(1);
      case 'k':
        return this.move(-1);
      case 'ArrowDown':
        return !scrolls && this.move(1);
      case 'ArrowUp':
        return !scrolls && this.move(-1);
      case 'PageDown':
        return !scrolls && this.move(this.list.page());
      case 'PageUp':
        return !scrolls && this.move(-this.list.page());
      case 'g':
        return this.move(-Infinity);
      case 'G':
        return this.move(Infinity);
      case 'Home':
        return !scrolls && this.move(-Infinity);
      case 'End':
        return !scrolls && this.move(Infinity);
      case 'Enter':
        return this.enter(target);
      case 'Escape':
        return this.escape();
      case '/':
        this.toolbar.field.focus();
        this.toolbar.field.select();
        return true;
      case '?':
        help();
        return true;
      case 'p':
        this.pause();
        return true;
      case 't':
        this.header.toggle();
        return true;
      case 'r':
        if (id) this.replay(id).catch(() => {});
        return true;
      case 'e':
        this.tab('replay');
        requestAnimationFrame(() => this.detail.form?.begin());
        return true;
      case 'c':
        if (id) this.curl(id);
        return true;
      case 'd':
        this.tab('diff');
        return true;
      default:
        return this.numbered(event.key);
    }
  }

  /** @param {string} key */
  numbered(key) {
    const name = this.id === null ? undefined : this.detail.offered()[Number(key) - 1];
    if (!/^[1-6]$/.test(key) || !name) return false;
    this.tab(name);
    return true;
  }

  /** @param {number} by */
  move(by) {
    const items = this.store.view;
    if (items.length === 0) return true;
    const active = this.list.active === null ? undefined : this.store.byId.get(this.list.active);
    const row = by === -Infinity ? items[0] : by === Infinity ? items[items.length - 1] : this.list.beside(by, active);
    if (!row) return true;
    if (this.id !== null && !this.picking) this.select(row.id, { push: false });
    this.list.mark(row.id, true);
    return true;
  }

  /** @param {HTMLElement} target */
  enter(target) {
    if (target.matches('button, a, summary')) return false;
    const row = this.list.active === null ? undefined : this.store.byId.get(this.list.active);
    if (row) this.choose(row, 'key');
    return row !== undefined;
  }

  escape() {
    if (this.picking) this.stopPicking();
    else if (!at('panel').hidden) this.header.toggle(false);
    else if (this.id !== null) this.select(null);
    else if (this.store.q) this.search('');
    return true;
  }
}

new Page();
