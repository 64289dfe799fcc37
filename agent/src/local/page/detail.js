// @ts-check
// One request: what came, what was answered, how long each leg took.

import { get } from './api.js';
import { bodyBlock, headerTable, queryTable } from './body.js';
import { DiffView } from './diff.js';
import { bytes, button, clock, copied, duration, h, line, moment, number, outcome, plain } from './dom.js';
import { Frames } from './frames.js';
import { ReplayForm } from './replay.js';

/** @typedef {import('./types').Summary} Summary */
/** @typedef {import('./types').Detail} Detail */

export const TABS = ['overview', 'request', 'response', 'frames', 'replay', 'diff'];
const LABELS = { overview: 'Overview', request: 'Request', response: 'Response', frames: 'Messages', replay: 'Replay', diff: 'Compare' };

/** What to do about what the local server did; docs/errors.md has more. */
const FIXES = {
  'UR-3001': 'Start the local server, and check that the agent was given its port.',
  'UR-3002': 'Check the local address, and that no firewall drops connections to it.',
  'UR-3003': 'See what the local server is doing, or give it more time in the settings of the tunnel.',
  'UR-3004': 'Look into the local server’s log: it may have crashed or restarted.',
  'UR-3005': 'Check the port, and that the server speaks HTTP there. If it expects HTTPS, give the agent an https:// address.',
  'UR-3006': 'If the server speaks plain HTTP, give the agent an http:// address. If its certificate is self-signed, tell the agent to trust it.',
  'UR-3007': 'Check the host name in the settings of the tunnel, and name resolution on this machine.',
  'UR-3008': 'Check the local address, this machine’s network, and what the agent may use.',
  'UR-3009': 'Look into the local server’s log: it may have crashed or restarted.',
};

/** Between looks at a request that goes on, in milliseconds. */
const AGAIN = 300;
/** A replay may not be in the list yet when it is asked for: so often it is asked for again. */
const TRIES = 10;

export class DetailPane {
  /** @param {HTMLElement} host @param {import('./types').App} app */
  constructor(host, app) {
    this.host = host;
    this.app = app;
    /** @type {string | null} */
    this.id = null;
    /** @type {Summary | undefined} */
    this.row = undefined;
    /** @type {Detail | null} */
    this.detail = null;
    this.tab = 'overview';
    /** @type {string | null} */
    this.other = null;
    /** What has to be closed with the tab's content. @type {Frames | DiffView | null} */
    this.part = null;
    /** @type {ReplayForm | null} */
    this.form = null;
    /** What the head shows now. */
    this.shown = '';
    this.stop = new AbortController();
    this.head = h('div', { class: 'detail-head' });
    this.tabs = h('div', { class: 'tabs', role: 'tablist', 'aria-label': 'Parts of the request' });
    this.tabs.addEventListener('keydown', (event) => this.key(event));
    this.panel = h('div', { class: 'tab', role: 'tabpanel', id: 'tab', tabindex: '0' });
    host.append(this.head, this.tabs, this.panel);
  }

  /**
   * @param {string} id
   * @param {Summary | undefined} row
   * @param {string} tab
   * @param {string | null} other
   */
  open(id, row, tab, other) {
    const another = id !== this.id;
    const turned = tab !== this.tab || other !== this.other;
    this.tab = tab;
    this.other = other;
    if (another) {
      this.id = id;
      this.row = row;
      this.detail = null;
      this.form = null;
      this.showHead();
      this.load(TRIES);
    } else if (turned) {
      this.showHead();
      this.showTab();
    }
  }

  close() {
    this.stop.abort();
    this.leave();
    this.id = null;
    this.row = undefined;
    this.detail = null;
    this.form = null;
    this.panel.replaceChildren();
  }

  leave() {
    this.part?.close();
    this.part = null;
  }

  /** @param {number} tries */
  async load(tries) {
    this.stop.abort();
    this.stop = new AbortController();
    const { signal } = this.stop;
    const first = this.detail === null;
    // What was there stays until the new is here: nothing flickers.
    const slow = first ? setTimeout(() => this.panel.classList.add('waiting'), 120) : undefined;
    try {
      const detail = /** @type {Detail} */ (await get(`requests/${this.id}`, signal));
      if (signal.aborted) return;
      const before = this.detail;
      this.detail = detail;
      this.row = detail;
      this.showHead();
      if (!before || this.differs(before, detail)) this.showTab();
    } catch (fault) {
      if (signal.aborted) return;
      const { status, title, detail } = /** @type {any} */ (fault);
      if (status === 404 && first && tries > 0 && (!this.row || Date.now() - this.row.started_ms < 5000)) {
        await new Promise((resolve) => setTimeout(resolve, AGAIN / 3));
        if (!signal.aborted) this.load(this.row ? tries - 1 : Math.min(tries - 1, 3));
        return;
      }
      if (first) this.showFault(status, title, detail);
    } finally {
      clearTimeout(slow);
      if (!signal.aborted) this.panel.classList.remove('waiting');
    }
  }

  /** @param {number} status @param {string} title @param {string} detail */
  showFault(status, title, detail) {
    this.leave();
    const keep = this.app.status?.inspector?.max_requests;
    const words = status === 404
      ? h('p', {}, `The agent keeps the newest ${keep ? number(keep) : ''} requests, and forgets all when it stops.`)
      : h('p', {}, plain(detail ?? ''));
    this.panel.replaceChildren(
      h('div', { class: 'callout bad' }, h('strong', {}, status === 404 ? 'This request is not kept any more' : plain(title ?? 'It did not load')), words),
    );
  }

  /** Whether what the tab shows has changed. @param {Detail} a @param {Detail} b */
  differs(a, b) {
    const facts = (/** @type {Detail} */ detail) => {
      const { request, response } = detail;
      const body = response && [response.body.size, response.body.kept, response.body.cut];
      switch (this.tab) {
        case 'request':
          return [request.body.size, request.body.kept, request.trailers.length];
        case 'response':
          return [body, detail.state, response?.trailers.length];
        case 'overview':
          return [detail.rev];
        default:
          return [];
      }
    };
    return JSON.stringify(facts(a)) !== JSON.stringify(facts(b));
  }

  /** News of a request in the list. @param {Summary} row */
  update(row) {
    if (row.id !== this.id) return;
    if (this.part instanceof Frames) this.part.update(row);
    if (!this.detail || row.rev <= this.detail.rev || this.timer !== undefined) return;
    this.timer = setTimeout(() => {
      this.timer = undefined;
      if (this.id === row.id) this.load(0);
    }, row.state === 'open' ? AGAIN : 0);
  }

  showHead() {
    const { row, app } = this;
    if (!row) {
      this.head.replaceChildren(h('div', { class: 'detail-title' }, this.backButton(), h('h2', {}, 'Request'), this.closeButton()));
      this.tabs.replaceChildren();
      return;
    }
    const { tone, text } = outcome(row);
    const state = JSON.stringify([row.id, row.method, row.path, text, row.kind, this.detail?.frames, this.tab]);
    if (this.shown === state && this.head.childElementCount > 0) return;
    this.shown = state;
    const focused = this.host.contains(document.activeElement) ? document.activeElement?.getAttribute('data-focus') : null;
    /** @param {any} drawing @param {string} before @param {string} word @param {string} after @param {string} key @param {() => void} press */
    const act = (drawing, before, word, after, key, press) => {
      const label = `${before}${word}${after}`;
      const element = button(drawing, label, press, { words: word, key });
      // A narrow page has room for the word only.
      element.querySelector('span')?.replaceChildren(h('span', { class: 'wide' }, before), word, h('span', { class: 'wide' }, after));
      element.dataset.focus = key;
      return element;
    };
    this.head.replaceChildren(
      h(
        'div',
        { class: 'detail-title' },
        this.backButton(),
        h('span', { class: `badge ${tone}` }, text),
        h('h2', { class: 'mono' }, h('span', { class: 'method' }, line(row.method)), ' ', h('span', {}, line(row.path))),
        this.closeButton(),
      ),
      h(
        'div',
        { class: 'actions' },
        act('replay', '', 'Replay', '', 'r', () => void app.replay(row.id).catch(() => {})),
        act('edit', '', 'Edit', ' and replay', 'e', () => app.tab('replay')),
        act('terminal', 'Copy as ', 'curl', '', 'c', () => app.curl(row.id)),
        act('diff', '', 'Compare', '', 'd', () => app.tab('diff')),
      ),
    );
    this.tabs.replaceChildren(
      ...this.offered().map((name) => {
        const on = name === this.tab;
        const count = name === 'frames' && this.detail ? h('span', { class: 'count' }, number(this.detail.frames)) : null;
        return h(
          'button',
          { type: 'button', role: 'tab', 'aria-selected': String(on), 'aria-controls': 'tab', tabindex: on ? '0' : '-1', 'data-tab': name, 'data-focus': `tab-${name}`, onclick: () => app.tab(name) },
          LABELS[/** @type {keyof typeof LABELS} */ (name)],
          count,
        );
      }),
    );
    this.panel.setAttribute('aria-label', LABELS[/** @type {keyof typeof LABELS} */ (this.tab)]);
    if (focused) /** @type {HTMLElement | null} */ (this.host.querySelector(`[data-focus="${CSS.escape(focused)}"]`))?.focus();
  }

  backButton() {
    return button('back', 'Back to the list', () => this.app.select(null), { class: 'back', key: 'Esc' });
  }

  closeButton() {
    return button('close', 'Close', () => this.app.select(null), { class: 'close', key: 'Esc' });
  }

  /** The tabs that this request has. */
  offered() {
    const messages = (this.row && this.row.kind !== 'http') || (this.detail?.frames ?? 0) > 0;
    return TABS.filter((name) => name !== 'frames' || messages);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const names = this.offered();
    const at = names.indexOf(this.tab);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const name = names[(to + names.length) % names.length];
    this.app.tab(name);
    /** @type {HTMLElement | null} */ (this.tabs.querySelector(`[data-tab=${name}]`))?.focus();
  }

  showTab() {
    const { detail } = this;
    if (!detail) return;
    this.leave();
    this.panel.className = `tab tab-${this.tab}`;
    this.panel.replaceChildren(...this.content(detail).filter((part) => part !== null && part !== false));
    this.panel.scrollTop = 0;
  }

  /** @param {Detail} detail @returns {(HTMLElement | null | false)[]} */
  content(detail) {
    const { request, response } = detail;
    switch (this.tab) {
      case 'request':
        return [
          queryTable(detail.path),
          headerTable(request.headers, 'Headers'),
          bodyBlock(detail.id, 'request', request.body, request.headers),
          request.trailers.length > 0 && headerTable(request.trailers, 'Trailers'),
        ];
      case 'response':
        if (!response) return [this.noResponse(detail)];
        return [
          h('p', { class: 'status-line mono' }, line(`${detail.http_version} ${response.status} ${response.reason}`)),
          detail.error !== null && callout(detail),
          headerTable(response.headers, 'Headers'),
          bodyBlock(detail.id, 'response', response.body, response.headers),
          response.trailers.length > 0 && headerTable(response.trailers, 'Trailers'),
        ];
      case 'frames':
        this.part = new Frames(detail);
        return [this.part.element];
      case 'replay':
        this.form ??= new ReplayForm(detail, this.app);
        return [this.form.element];
      case 'diff':
        this.part = new DiffView(detail, this.other ?? detail.replay_of, this.app);
        return [this.part.element];
      default:
        return this.overview(detail);
    }
  }

  /** @param {Detail} detail */
  noResponse(detail) {
    if (detail.error !== null) return callout(detail);
    if (detail.state === 'open') return h('p', { class: 'dim' }, `No answer yet. ${line(detail.upstream ?? 'The local server')} has had the request since ${clock(detail.started_ms)}.`);
    return h('p', { class: 'dim' }, 'There was no answer.');
  }

  /** @param {Detail} detail */
  overview(detail) {
    const { app } = this;
    const url = `${detail.scheme}://${detail.host}${detail.path}`;
    const replays = app.alike(detail).filter((row) => row.replay_of === detail.id);
    const { request, response } = detail;
    const session = detail.grpc;
    return [
      detail.error !== null ? callout(detail) : null,
      detail.replay_of !== null
        ? h(
            'div',
            { class: 'callout info' },
            h('span', { class: 'grow' }, 'A replay of ', this.jump(detail.replay_of), '.'),
            button('diff', 'Compare the answers', () => app.compare(detail.id, detail.replay_of), { words: 'Compare the answers' }),
          )
        : null,
      timing(detail),
      facts([
        ['URL', h('span', { class: 'mono' }, line(url)), button('copy', 'Copy URL', () => copied(url, 'URL'))],
        ['Visitor', h('span', { class: 'mono' }, line(detail.visitor))],
        ['When', moment(detail.started_ms)],
        ['Tunnel', line(detail.tunnel)],
        detail.upstream === null ? null : ['Local server', h('span', { class: 'mono' }, line(detail.upstream))],
        ['Protocol', line(detail.http_version) + (detail.kind === 'http' ? '' : `, ${kindWords(detail.kind)}`)],
        ['Request', `${bytes(request.body.size)} of body, ${request.headers.length} headers`],
        ['Answer', response ? `${bytes(response.body.size)} of body, ${response.headers.length} headers${detail.type ? `, ${line(detail.type)}` : ''}` : 'none'],
        session ? ['gRPC status', `${session.status ?? 'none'} ${line(session.message)}`] : null,
        replays.length > 0 ? ['Replays', h('span', { class: 'jumps' }, replays.slice(0, 5).map((row) => this.jump(row.id)))] : null,
        ['Request id', h('span', { class: 'mono' }, line(detail.id)), button('copy', 'Copy request id', () => copied(detail.id, 'Request id'))],
      ]),
    ];
  }

  /** A link to another request. @param {string} id */
  jump(id) {
    const row = this.app.find(id);
    const words = row ? `${clock(row.started_ms)} → ${outcome(row).text}` : `${id.slice(0, 8)}…`;
    return h('button', { type: 'button', class: 'link', onclick: () => this.app.select(id, { push: true }) }, words);
  }
}

/** @param {string} kind */
function kindWords(kind) {
  return { websocket: 'WebSocket', sse: 'server-sent events', grpc: 'gRPC' }[kind] ?? kind;
}

/** What went wrong. @param {Summary} row */
function callout(row) {
  const text = plain(row.error ?? '');
  const code = /^UR-\d{4}/.exec(text)?.[0];
  const words = code ? text.slice(code.length).trim() : text;
  return h(
    'div',
    { class: 'callout bad', role: 'note' },
    h(
      'div',
      { class: 'grow' },
      h('strong', {}, code ? `Failed: ${code}` : 'Failed'),
      h('p', {}, words),
      code && h('p', {}, FIXES[/** @type {keyof typeof FIXES} */ (code)]),
    ),
  );
}

/** @param {(any[] | null)[]} list */
function facts(list) {
  return h(
    'table',
    { class: 'pairs facts' },
    h('tbody', {}, list.map((fact) => fact && h('tr', {}, h('th', { scope: 'row' }, fact[0]), h('td', {}, fact[1], fact[2])))),
  );
}

/** The legs, one after the other. @param {Detail} detail */
function timing(detail) {
  const t = detail.timing;
  const legs = /** @type {[string, string, number | undefined][]} */ ([
    ['held', 'Held by the edge', t.held_us],
    ['edge', 'Edge', t.edge_us],
    ['link', 'Edge to agent ≈', t.link_us],
    ['connect', 'Connecting', t.connect_us],
    ['send', 'Sending', t.send_us],
    ['wait', 'Local server', t.wait_us],
    ['receive', 'Receiving', t.receive_us],
    ['link', 'Agent to edge ≈', detail.wait_us === null ? undefined : t.link_us],
  ]).filter(([name, , us]) => us !== undefined && us !== null && (us > 0 || (name === 'wait' && detail.wait_us !== null)));
  const total = legs.reduce((sum, [, , us]) => sum + (us ?? 0), 0);
  let at = 0;
  const bars = legs.map(([name, label, us]) => {
    const value = us ?? 0;
    const bar = h('span', { class: `bar ${name}` });
    bar.style.left = `${total ? Math.min(99, (at / total) * 100) : 0}%`;
    bar.style.width = `${total ? (value / total) * 100 : 0}%`;
    at += value;
    return h('div', { class: 'leg' }, h('span', { class: 'leg-name' }, label), h('span', { class: 'lane' }, bar), h('span', { class: 'leg-time' }, duration(value)));
  });
  const whole = detail.state === 'open' ? 'still open' : duration(detail.duration_us);
  return h(
    'section',
    { class: 'block timing', 'aria-label': 'Timing' },
    h(
      'div',
      { class: 'block-head' },
      h('h3', {}, 'Timing'),
      h('span', { class: 'dim' }, [t.reused && 'over a connection that was open already', t.link_us && '≈ half of the last round trip'].filter(Boolean).join('; ')),
      h('span', { class: 'grow' }),
      h('strong', { class: 'figures' }, whole),
    ),
    bars,
  );
}
