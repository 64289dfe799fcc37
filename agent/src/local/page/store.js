// @ts-check
// The requests that the agent keeps, newest first, and those of them that the search finds.
//
// The agent decides what matches: it looks into headers and bodies too. Until its answer is there, and
// for what is newer than its answer, the page judges by what it sees in the list.

import { get } from './api.js';

/** @typedef {import('./types').Summary} Summary */
/** @typedef {{not: boolean, field: string, value: string}} Word */

/** The first page is small, so that it is there at once. */
const FIRST = 200;
const PAGE = 1000;
/** Requests that the page keeps if the agent does not say how many it keeps. */
const KEEP = 10_000;
/** From the last letter typed to the question, in milliseconds. */
const TYPING = 120;
/** How far back the page looks for requests that were open, when it missed events. */
const BACK = 2000;
/** Between questions about what came in since, in milliseconds. */
const AGAIN = 400;

const FIELDS = ['method', 'status', 'path', 'tunnel', 'type', 'slow', 'is'];

/** @param {string} q @returns {Word[]} */
export function words(q) {
  return q.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const not = word.length > 1 && word.startsWith('-');
    const rest = not ? word.slice(1) : word;
    const colon = rest.indexOf(':');
    const field = rest.slice(0, Math.max(colon, 0));
    if (!FIELDS.includes(field)) return { not, field: '', value: rest };
    return { not, field, value: rest.slice(colon + 1) };
  });
}

/** @param {Summary} row @param {Word[]} wanted */
export function matches(row, wanted) {
  return wanted.every((word) => holds(row, word) !== word.not);
}

/** @param {Summary} row @param {Word} word */
function holds(row, { field, value }) {
  switch (field) {
    case 'method':
      return row.method.toLowerCase() === value;
    case 'status':
      if (/^[1-5]xx$/.test(value)) return row.status !== null && String(row.status)[0] === value[0];
      return String(row.status ?? '') === value;
    case 'path':
      return row.path.toLowerCase().includes(value);
    case 'tunnel':
      return row.tunnel.toLowerCase() === value;
    case 'type':
      return row.type.toLowerCase().includes(value);
    case 'slow':
      return (row.duration_us ?? 0) >= Number(value) * 1000;
    case 'is':
      if (value === 'replay') return row.replay_of !== null;
      if (value === 'error') return row.state === 'failed' || (row.status ?? 0) >= 500;
      return row.kind === value;
    default:
      row.hay ??= `${row.method} ${row.path} ${row.host} ${row.visitor} ${row.status ?? ''}`.toLowerCase();
      return row.hay.includes(value);
  }
}

/** Where in `rows` (newest first) the request `seq` is, or would be. @param {Summary[]} rows @param {number} seq */
export function place(rows, seq) {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].seq > seq) low = middle + 1;
    else high = middle;
  }
  return low;
}

export class Store {
  /** @param {() => void} changed called after every change, often */
  constructor(changed) {
    this.changed = changed;
    /** @type {Map<string, Summary>} */
    this.byId = new Map();
    /** @type {Summary[]} */
    this.rows = [];
    /** @type {Summary[]} what is shown */
    this.view = this.rows;
    this.q = '';
    /** @type {Word[]} */
    this.wanted = [];
    this.keep = KEEP;
    /** How many the agent has, once it said. */
    this.total = 0;
    this.loaded = false;
    this.loading = false;
    /** @type {import("./api.js").Problem | null} */
    this.fault = null;
    /** While the list is paused: nothing newer than this is shown. @type {number | null} */
    this.until = null;
    /** The agent's answer: which match, of those from `down` to `up`. @type {{ids: Set<string>, up: number, down: number, total: number} | null} */
    this.found = null;
    /** The oldest that changed since the agent's answer. */
    this.stale = Infinity;
    /** @type {number | undefined} */
    this.again = undefined;
    this.stop = new AbortController();
    this.stopSearch = new AbortController();
  }

  /** All that the agent keeps, anew. What it keeps no longer goes. */
  async load() {
    this.stop.abort();
    this.stop = new AbortController();
    const { signal } = this.stop;
    const seen = new Set();
    this.loading = true;
    try {
      let latest = 0;
      let before = '';
      for (let limit = FIRST; ; limit = PAGE) {
        const page = await get(`requests?limit=${limit}${before}`, signal);
        if (!before) {
          latest = page.latest;
          this.total = page.total;
        }
        for (const row of page.requests) seen.add(row.id);
        this.merge(page.requests);
        this.loaded = true;
        this.fault = null;
        this.rebuild();
        if (page.next === null || page.requests.length === 0) break;
        before = `&before=${page.next}`;
      }
      this.drop((row) => row.seq <= latest && !seen.has(row.id));
      this.loading = false;
      this.rebuild();
    } catch (fault) {
      if (signal.aborted) return;
      this.loading = false;
      this.fault = /** @type {any} */ (fault);
      this.changed();
    }
    if (this.q) this.search();
  }

  /** What events would have told, had they not been too many: asks for what is new or was open. */
  async catchUp() {
    if (this.loading) return;
    this.loading = true;
    const newest = this.rows[0]?.seq ?? 0;
    const oldest = this.rows.findLast((row) => row.state === 'open' && row.seq > newest - BACK)?.seq ?? newest;
    const { signal } = this.stop;
    try {
      let latest = 0;
      let before = '';
      do {
        const page = await get(`requests?limit=${PAGE}&after=${Math.min(oldest, newest) - 1}${before}`, signal);
        if (!before) {
          latest = page.latest;
          this.total = page.total;
        }
        this.merge(page.requests);
        before = page.next === null || page.requests.length === 0 ? '' : `&before=${page.next}`;
      } while (before);
      // The agent forgets the oldest ones first.
      const newer = place(this.rows, latest);
      for (const row of this.rows.splice(newer + this.total)) this.byId.delete(row.id);
    } catch {
      // The stream says when the agent is gone.
    }
    if (signal.aborted) return;
    this.loading = false;
    this.rows = this.rows.slice();
    if (this.q) this.search();
    this.rebuild();
  }

  clear() {
    this.stop.abort();
    this.loading = false;
    this.byId.clear();
    this.rows = [];
    this.total = 0;
    this.found = null;
    this.rebuild();
  }

  /** @param {(row: Summary) => boolean} gone */
  drop(gone) {
    const kept = this.rows.filter((row) => !gone(row) || !this.byId.delete(row.id));
    if (kept.length !== this.rows.length) this.rows = kept;
  }

  /** Takes what is new or newer. @param {Summary[]} coming */
  merge(coming) {
    const fresh = [];
    for (const row of coming) {
      const old = this.byId.get(row.id);
      if (!old) {
        this.byId.set(row.id, row);
        fresh.push(row);
      } else if (row.rev > old.rev) {
        Object.assign(old, row);
        old.hay = undefined;
      }
    }
    if (fresh.length === 0) return;
    fresh.sort((a, b) => b.seq - a.seq);
    const rows = this.rows;
    if (rows.length === 0 || fresh[fresh.length - 1].seq > rows[0].seq) this.rows = fresh.concat(rows);
    else if (fresh[0].seq < rows[rows.length - 1].seq) this.rows = rows.concat(fresh);
    else this.rows = rows.concat(fresh).sort((a, b) => b.seq - a.seq);
    for (const row of this.rows.splice(this.keep)) this.byId.delete(row.id);
  }

  /** What the stream told. @param {Summary[]} events */
  take(events) {
    this.merge(events);
    this.total = Math.max(this.total, this.rows.length);
    if (this.q) {
      for (const row of events) this.stale = Math.min(this.stale, row.seq);
      this.again ??= setTimeout(() => this.refresh(), AGAIN);
    }
    this.rebuild();
  }

  /** @param {string} q */
  setQuery(q) {
    this.q = q;
    this.wanted = words(q);
    this.found = null;
    this.stopSearch.abort();
    clearTimeout(this.typing);
    if (q) this.typing = setTimeout(() => this.search(), TYPING);
    this.rebuild();
  }

  /** Asks the agent what matches. */
  async search() {
    this.stopSearch.abort();
    this.stopSearch = new AbortController();
    const { signal } = this.stopSearch;
    this.stale = Infinity;
    await this.pages('', signal, (page, first) => {
      const last = page.requests[page.requests.length - 1];
      if (first) this.found = { ids: new Set(), up: page.latest, down: 0, total: page.total };
      if (!this.found) return;
      for (const row of page.requests) this.found.ids.add(row.id);
      this.found.down = page.next === null || !last ? 0 : last.seq;
    });
  }

  /** Asks about what changed since. */
  async refresh() {
    this.again = undefined;
    const { signal } = this.stopSearch;
    if (!this.found || !this.q || this.stale === Infinity) return;
    const from = this.stale;
    this.stale = Infinity;
    const ids = new Set();
    let up = 0;
    const done = await this.pages(`&after=${from - 1}`, signal, (page, first) => {
      if (first) up = page.latest;
      for (const row of page.requests) ids.add(row.id);
    });
    if (!done || !this.found) return;
    for (const row of this.rows) {
      if (row.seq < from) break;
      if (ids.has(row.id)) this.found.ids.add(row.id);
      else this.found.ids.delete(row.id);
    }
    this.found.up = Math.max(up, this.found.up);
    this.rebuild();
  }

  /**
   * @param {string} more
   * @param {AbortSignal} signal
   * @param {(page: any, first: boolean) => void} each
   */
  async pages(more, signal, each) {
    try {
      let before = '';
      do {
        const page = await get(`requests?limit=${PAGE}${more}${before}&q=${encodeURIComponent(this.q)}`, signal);
        if (signal.aborted) return false;
        this.merge(page.requests);
        each(page, before === '');
        this.rebuild();
        before = page.next === null || page.requests.length === 0 ? '' : `&before=${page.next}`;
      } while (before);
      return true;
    } catch {
      // The stream says when the agent is gone; what the page found itself stays.
      return false;
    }
  }

  /** @param {boolean} on */
  pause(on) {
    this.until = on ? (this.rows[0]?.seq ?? 0) : null;
    this.rebuild();
  }

  rebuild() {
    if (!this.q && this.until === null) {
      this.view = this.rows;
    } else {
      const rows = this.until === null ? this.rows : this.rows.slice(place(this.rows, this.until));
      this.view = this.q ? rows.filter((row) => this.shows(row)) : rows;
    }
    this.changed();
  }

  /** @param {Summary} row */
  shows(row) {
    const { found } = this;
    if (found && row.seq <= found.up && row.seq >= found.down && row.seq < this.stale) return found.ids.has(row.id);
    return found?.ids.has(row.id) || matches(row, this.wanted);
  }

  /** How many wait while the list is paused. */
  waiting() {
    if (this.until === null) return 0;
    const newer = this.rows.slice(0, place(this.rows, this.until));
    return this.q ? newer.filter((row) => this.shows(row)).length : newer.length;
  }
}
