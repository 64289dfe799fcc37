// @ts-check
// Search, its words at hand, and what is done with all requests.

import { button, counted, h, icon, line, number } from './dom.js';

/** @typedef {import('./types').Status} Status */

/** Search words at hand. */
const CHIPS = [
  ['is:error', 'Errors'],
  ['status:4xx', '4xx'],
  ['status:5xx', '5xx'],
  ['slow:500', 'Slow'],
  ['is:websocket', 'WebSocket'],
  ['is:sse', 'SSE'],
  ['is:grpc', 'gRPC'],
  ['is:replay', 'Replays'],
];

export class Toolbar {
  /**
   * @param {HTMLElement} host
   * @param {{search(q: string): void, pause(): void, record(on: boolean): void, forget(): void}} acts
   */
  constructor(host, acts) {
    this.acts = acts;
    this.recordsNow = true;
    this.field = h('input', {
      type: 'search',
      id: 'search',
      placeholder: 'Search everything',
      'aria-label': 'Search requests',
      'aria-keyshortcuts': '/',
      autocomplete: 'off',
      autocapitalize: 'off',
      spellcheck: 'false',
      enterkeyhint: 'search',
      oninput: () => acts.search(this.field.value),
    });
    this.chips = CHIPS.map(([word, label]) => {
      const press = () => this.change((part) => part === word, word);
      return h('button', { type: 'button', class: 'toggle', title: word, 'data-word': word, 'aria-pressed': 'false', onclick: press }, label);
    });
    this.tunnels = h('select', {
      class: 'tunnel-choice',
      'aria-label': 'Tunnel',
      hidden: true,
      onchange: () => this.change((part) => part.startsWith('tunnel:'), this.tunnels.value && `tunnel:${this.tunnels.value}`, true),
    });
    this.figures = h('span', { class: 'figures dim' });
    this.recording = h('button', { type: 'button', class: 'button record', onclick: () => acts.record(!this.recordsNow) });
    this.pause = h('button', { type: 'button', class: 'button', 'aria-keyshortcuts': 'p', onclick: acts.pause.bind(acts) });
    this.har = h('a', { class: 'button', download: 'uniroute.har', title: 'Save what the list shows as a HAR file', 'aria-label': 'Save as HAR' }, icon('download'), h('span', {}, 'HAR'));
    host.append(
      h('div', { class: 'search' }, icon('search'), this.field, h('kbd', { 'aria-hidden': 'true' }, '/')),
      h('div', { class: 'toggles', role: 'group', 'aria-label': 'Search words' }, this.chips, this.tunnels),
      h('div', { class: 'tools' }, this.figures, this.recording, this.pause, this.har, button('trash', 'Forget all requests', () => acts.forget())),
    );
    this.showRecording(true);
    this.showPause(false);
  }

  /**
   * Takes words out of the search, and puts one in if it was not there.
   * @param {(part: string) => boolean} out
   * @param {string} word
   * @param {boolean} [always] put it in even if it was there
   */
  change(out, word, always = false) {
    const parts = this.field.value.split(/\s+/).filter(Boolean);
    const kept = parts.filter((part) => !out(part));
    if (word && (always || kept.length === parts.length)) kept.push(word);
    this.acts.search(kept.join(' '));
  }

  /** @param {Status} status */
  showTunnels(status) {
    const keys = status.tunnels.map((tunnel) => tunnel.key);
    document.body.classList.toggle('several', keys.length > 1);
    if (keys.join(' ') === this.tunnels.dataset.keys) return;
    this.tunnels.dataset.keys = keys.join(' ');
    this.tunnels.hidden = keys.length < 2;
    this.tunnels.replaceChildren(h('option', { value: '' }, 'All tunnels'), ...keys.map((key) => h('option', { value: key }, line(key))));
    this.showWords(this.field.value);
  }

  /** @param {string} q */
  showWords(q) {
    if (this.field.value !== q) this.field.value = q;
    const parts = q.split(/\s+/);
    for (const chip of this.chips) chip.setAttribute('aria-pressed', String(parts.includes(chip.dataset.word ?? '')));
    const tunnel = parts.find((part) => part.startsWith('tunnel:'))?.slice(7) ?? '';
    this.tunnels.value = [...this.tunnels.options].some((option) => option.value === tunnel) ? tunnel : '';
    this.har.href = `/api/v1/har${q ? `?q=${encodeURIComponent(q)}` : ''}`;
  }

  /** @param {import('./store.js').Store} store @param {Status | null} status */
  showFigures(store, status) {
    const total = Math.max(store.total, store.rows.length);
    const waiting = store.waiting();
    const text = store.q ? `${number(store.view.length)} of ${number(total)}` : counted(total, 'request');
    const words = waiting ? `${text} · ${number(waiting)} wait` : text;
    if (this.figures.textContent !== words) this.figures.textContent = words;
    const on = status?.inspector?.recording !== false;
    if (on !== this.recordsNow) this.showRecording(on);
  }

  /** @param {boolean} on */
  showRecording(on) {
    this.recordsNow = on;
    this.recording.replaceChildren(h('span', { class: `dot ${on ? 'rec' : 'open'}` }), h('span', {}, on ? 'Recording' : 'Record'));
    this.recording.title = on ? 'Requests are recorded: press to stop that' : 'Requests are not recorded: press to record them';
    this.recording.setAttribute('aria-label', 'Record requests');
    this.recording.setAttribute('aria-pressed', String(on));
  }

  /** @param {boolean} on */
  showPause(on) {
    this.pause.replaceChildren(icon(on ? 'play' : 'pause'), h('span', {}, on ? 'Go on' : 'Pause'));
    this.pause.title = on ? 'Show what came in since (p)' : 'Let the list stand still; requests are recorded all the same (p)';
    this.pause.setAttribute('aria-label', on ? 'Let the list go on' : 'Pause the list');
    this.pause.setAttribute('aria-pressed', String(on));
  }
}
