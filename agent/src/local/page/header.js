// @ts-check
// The top of the page: where the tunnels are, how the agent and the local servers are, and what to do
// about what is wrong.

import { bytes, button, copied, counted, duration, h, icon, line, moment, number, outward, plain } from './dom.js';

/** @typedef {import('./types').Status} Status */
/** @typedef {import('./types').Tunnel} Tunnel */

const STATES = { ready: 'ready', waiting: 'waiting for the edge', paused: 'paused', refused: 'refused', deleted: 'deleted' };

/** What makes an edge's made-up name long. */
const UNIQUE = /-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** @param {Tunnel} tunnel */
function tone(tunnel) {
  if (tunnel.state !== 'ready') return tunnel.state === 'waiting' || tunnel.state === 'paused' ? 'warn' : 'bad';
  return tunnel.upstreams.some((upstream) => upstream.healthy === false) ? 'warn' : 'good';
}

/** @param {string} name a colour and a word for who sees none @param {string} words */
function dot(name, words) {
  return h('span', { class: `dot ${name}`, role: 'img', 'aria-label': words, title: words });
}

/** @param {string} text a reason of few words */
function sentence(text) {
  if (text === '') return '';
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? ' ' : '. '}`;
}

/** Without the scheme, for reading. @param {string} url */
export function short(url) {
  return line(url.replace(/^https?:\/\//, '').replace(/\/$/, ''));
}

/** @param {Tunnel} tunnel */
function health(tunnel) {
  return tunnel.upstreams.map((upstream) => {
    const [name, words] = upstream.healthy === false ? ['bad', `does not answer: ${upstream.reason}`] : upstream.healthy ? ['good', 'answers'] : ['open', 'not looked at yet'];
    return h('span', { class: 'server' }, dot(name, plain(words)), h('span', { class: 'mono' }, short(upstream.url)));
  });
}

/** @param {Tunnel} tunnel */
function address(tunnel) {
  if (!tunnel.url) return [h('span', { class: 'dim' }, line(tunnel.key), ': no address yet')];
  return [
    outward(tunnel.url, h('span', { class: 'mono' }, short(tunnel.url))),
    button('copy', 'Copy address', () => copied(tunnel.url, 'Address')),
  ];
}

export class Header {
  /** @param {{header: HTMLElement, panel: HTMLElement, banner: HTMLElement}} hosts @param {{retry(): void, record(on: boolean): void, help(): void}} acts */
  constructor(hosts, acts) {
    this.hosts = hosts;
    this.acts = acts;
    // What each part shows now: it is made anew only when that changes.
    this.structure = '';
    this.sessionState = '';
    this.panelState = '';
    this.bannerState = '';
    this.tunnels = h('div', { class: 'tunnels' });
    this.session = h('button', { type: 'button', class: 'session', 'aria-expanded': 'false', 'aria-controls': 'panel', onclick: () => this.toggle() });
    this.counts = h('div', { class: 'counts dim' });
    const mark = h('img', { src: '/assets/icon.svg', alt: '', width: '22', height: '22' });
    hosts.header.append(
      h('h1', { class: 'brand' }, mark, h('span', {}, 'UniRoute')),
      this.tunnels,
      this.counts,
      this.session,
      button(null, 'Keys and search words', acts.help, { words: '?', key: '?', class: 'help' }),
    );
    /** @type {Map<string, HTMLElement>} */
    this.cells = new Map();
  }

  /** @param {Status | null} status @param {string} live @param {string} why */
  show(status, live, why) {
    this.showSession(status, live);
    this.showBanners(status, live, why);
    if (!status) return;
    const structure = JSON.stringify(status.tunnels.map((t) => [t.key, t.url, t.state, t.reason, t.kind, t.upstreams.map((u) => [u.url, u.healthy, u.reason])]));
    if (structure !== this.structure) {
      this.structure = structure;
      this.showTunnels(status);
      document.title = status.tunnels.length === 1 && status.tunnels[0].name ? `${line(status.tunnels[0].name)} – UniRoute inspector` : 'UniRoute inspector';
    }
    const sum = (/** @type {'requests' | 'failed' | 'open'} */ name) => status.tunnels.reduce((all, tunnel) => all + tunnel[name], 0);
    const failed = sum('failed');
    this.counts.textContent = [counted(sum('requests'), 'request'), failed ? `${number(failed)} failed` : '', `${number(sum('open'))} open`].filter(Boolean).join(' · ');
    this.showPanel(status);
  }

  /** @param {Status | null} status @param {string} live */
  showSession(status, live) {
    const first = status?.sessions[0];
    const [name, words] = live === 'gone'
      ? ['bad', 'Agent stopped']
      : live === 'connecting' && !status
        ? ['open', 'Connecting…']
        : !first
          ? ['warn', 'Not connected']
          : ['good', first.rtt_us ? duration(first.rtt_us) : 'Connected'];
    const before = name === 'good' && first ? `${line(first.edge.replace(UNIQUE, ''))} · ` : '';
    const after = name === 'good' && status && status.sessions.length > 1 ? ` · ${status.sessions.length} sessions` : '';
    const state = name + before + words + after;
    this.session.classList.toggle('unknown', name === 'open');
    if (state === this.sessionState) return;
    this.sessionState = state;
    this.session.replaceChildren(h('span', { class: `dot ${name}` }), h('span', {}, h('span', { class: 'wide' }, before), words, h('span', { class: 'wide' }, after)), icon('chevron'));
    this.session.title = 'Tunnels, sessions and memory (t)';
    this.session.setAttribute('aria-label', `Connection: ${before}${words}${after}`);
  }

  /** @param {Status} status */
  showTunnels(status) {
    const { tunnels } = status;
    if (tunnels.length === 1) {
      const [tunnel] = tunnels;
      this.tunnels.replaceChildren(
        dot(tone(tunnel), STATES[tunnel.state]),
        ...address(tunnel),
        h('span', { class: 'arrow dim', 'aria-label': 'leads to' }, '→'),
        ...health(tunnel),
      );
      return;
    }
    const worst = ['bad', 'warn', 'good'].find((name) => tunnels.some((tunnel) => tone(tunnel) === name)) ?? 'open';
    const trouble = tunnels.filter((tunnel) => tone(tunnel) !== 'good').length;
    const words = trouble ? `, ${trouble} with trouble` : '';
    const opener = this.hosts.panel.hidden ? 'false' : 'true';
    this.tunnels.replaceChildren(
      h(
        'button',
        { type: 'button', class: 'session', 'aria-expanded': opener, 'aria-controls': 'panel', onclick: () => this.toggle() },
        h('span', { class: `dot ${worst}` }),
        h('span', {}, counted(tunnels.length, 'tunnel'), h('span', { class: 'wide' }, words)),
        icon('chevron'),
      ),
    );
  }

  toggle(on = this.hosts.panel.hidden) {
    this.hosts.panel.hidden = !on;
    for (const opener of this.hosts.header.querySelectorAll('.session')) opener.setAttribute('aria-expanded', String(on));
    this.panelState = '';
    if (this.last) this.showPanel(this.last);
  }

  /** @param {Status} status */
  showPanel(status) {
    this.last = status;
    const { panel } = this.hosts;
    if (panel.hidden) return;
    const state = `${this.structure} ${JSON.stringify(status.sessions.map((s) => [s.edge, s.carrier, s.since_ms]))}`;
    if (state !== this.panelState) {
      this.panelState = state;
      this.cells.clear();
      panel.replaceChildren(this.tunnelTable(status), this.sessionTable(status));
    }
    const put = (/** @type {string} */ name, /** @type {string} */ text) => {
      const cell = this.cells.get(name);
      if (cell) cell.textContent = text;
    };
    for (const tunnel of status.tunnels) {
      put(`requests ${tunnel.key}`, number(tunnel.requests));
      put(`failed ${tunnel.key}`, number(tunnel.failed));
      put(`open ${tunnel.key}`, number(tunnel.open));
    }
    status.sessions.forEach((session, index) => put(`rtt ${index}`, session.rtt_us ? duration(session.rtt_us) : 'not measured yet'));
    const kept = status.inspector;
    if (kept) {
      put('kept', `${counted(kept.captured, 'request')} of at most ${number(kept.max_requests)}, ${bytes(kept.bytes)} of at most ${bytes(kept.max_bytes)} in memory${kept.spool_bytes ? `, ${bytes(kept.spool_bytes)} on disk` : ''}${kept.evicted ? `; ${number(kept.evicted)} older ones forgotten` : ''}`);
    }
  }

  /** @param {string} name @param {string} [kind] */
  cell(name, kind = 'td') {
    const cell = kind === 'td' ? h('td', { class: 'figures' }) : h('span', { class: 'figures' });
    this.cells.set(name, cell);
    return cell;
  }

  /** @param {Status} status */
  tunnelTable(status) {
    const titles = ['Tunnel', 'Address', 'Local servers', 'Requests', 'Failed', 'Open'];
    const rows = status.tunnels.map((tunnel) =>
      h(
        'tr',
        {},
        h('th', { scope: 'row' }, dot(tone(tunnel), STATES[tunnel.state]), ' ', line(tunnel.key), h('span', { class: 'dim' }, ` ${line(tunnel.kind)}`)),
        h('td', {}, h('span', { class: 'address' }, address(tunnel)), tunnel.reason && h('p', { class: 'why' }, plain(tunnel.reason))),
        h('td', {}, health(tunnel), tunnel.upstreams.filter((upstream) => upstream.healthy === false).map((upstream) => h('p', { class: 'why' }, plain(upstream.reason)))),
        this.cell(`requests ${tunnel.key}`),
        this.cell(`failed ${tunnel.key}`),
        this.cell(`open ${tunnel.key}`),
      ),
    );
    return h('div', { class: 'scroll' }, h('table', { class: 'grid-table' }, h('thead', {}, h('tr', {}, titles.map((title) => h('th', { scope: 'col' }, title)))), h('tbody', {}, rows)));
  }

  /** @param {Status} status */
  sessionTable(status) {
    const sessions = status.sessions.map((session, index) =>
      h('p', {}, h('strong', {}, line(session.edge)), ` over ${line(session.carrier)} to `, h('span', { class: 'mono' }, short(session.server)), `, there and back in `, this.cell(`rtt ${index}`, 'span'), `, since ${moment(session.since_ms).slice(0, 19)}`),
    );
    return h(
      'div',
      { class: 'panel-facts' },
      sessions.length ? sessions : h('p', {}, plain(status.trouble || 'Not connected to an edge.')),
      h('p', {}, h('strong', {}, 'Kept'), ' ', this.cell('kept', 'span')),
      h('p', { class: 'dim' }, `uniroute ${line(status.version)}, agent ${line(status.agent_id)}, since ${moment(status.started_ms).slice(0, 19)}`),
    );
  }

  /** @param {Status | null} status @param {string} live @param {string} why */
  showBanners(status, live, why) {
    /** @type {[string, string, string, HTMLElement?][]} */
    const list = [];
    if (live === 'gone') {
      list.push(['bad', 'The agent does not answer.', why || 'It was stopped. Start it with the same command: this page finds it again by itself. What is shown is from before.', button('replay', 'Try now', this.acts.retry, { words: 'Try now' })]);
    } else if (live === 'refused') {
      list.push(['warn', 'Nothing new is shown.', why, button('replay', 'Try now', this.acts.retry, { words: 'Try now' })]);
    } else if (status) {
      if (status.sessions.length === 0) list.push(['bad', 'No visitor gets through: the agent has no connection to the edge.', status.trouble]);
      for (const tunnel of status.tunnels) {
        if (tunnel.state === 'refused' || tunnel.state === 'deleted' || tunnel.state === 'paused') list.push(['bad', `Tunnel ${line(tunnel.key)} is ${STATES[tunnel.state]}.`, tunnel.reason]);
        for (const upstream of tunnel.upstreams) {
          // The reason names the address again; what to do is what is missing.
          if (upstream.healthy === false) list.push(['warn', `${short(upstream.url)} does not answer.`, `${sentence(upstream.reason)}Start it: requests get through again by themselves.`]);
        }
      }
      if (status.inspector?.recording === false) {
        list.push(['info', 'Requests are not recorded.', 'They pass as always, but leave nothing here.', button('play', 'Record', () => this.acts.record(true), { words: 'Record' })]);
      }
    }
    const state = JSON.stringify(list.map((entry) => entry.slice(0, 3)));
    if (state === this.bannerState) return;
    this.bannerState = state;
    const shown = list.slice(0, 3).map(([name, title, text, act]) =>
      h('div', { class: `banner ${name}` }, icon('warn'), h('p', { class: 'grow' }, h('strong', {}, title), ' ', plain(text)), act),
    );
    if (list.length > 3) shown.push(h('div', { class: 'banner info' }, h('p', { class: 'grow' }, `${list.length - 3} more.`), button(null, 'Show all', () => this.toggle(true), { words: 'Show all' })));
    this.hosts.banner.replaceChildren(...shown);
  }
}
