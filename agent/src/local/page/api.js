// @ts-check
// The agent's local API: questions, and the stream of what happens.

/** A question that gets no answer in this time failed, in milliseconds. */
const PATIENCE = 15_000;

/** What went wrong, in words for people. */
export class Problem extends Error {
  /**
   * @param {number} status 0: no answer at all
   * @param {string} title
   * @param {string} detail
   * @param {string} [code]
   */
  constructor(status, title, detail, code) {
    super(title);
    this.status = status;
    this.title = title;
    this.detail = detail;
    this.code = code;
  }
}

/** @param {Response} answer */
async function problem(answer) {
  try {
    const body = await answer.json();
    const words = String(body.detail || body.title || `Status ${answer.status}`);
    return new Problem(answer.status, words[0].toUpperCase() + words.slice(1), String(body.fix ?? ''), body.code);
  } catch {
    return new Problem(answer.status, `The agent answered ${answer.status}`, answer.statusText);
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 * @returns {Promise<Response>} a good answer
 */
export async function ask(path, init = {}) {
  const patience = init.method === 'POST' ? [] : [AbortSignal.timeout(PATIENCE)];
  const signal = AbortSignal.any([...(init.signal ? [init.signal] : []), ...patience]);
  let answer;
  try {
    answer = await fetch(`/api/v1/${path}`, { ...init, signal });
  } catch (fault) {
    if (init.signal?.aborted) throw fault;
    throw new Problem(0, 'The agent does not answer', 'It has stopped, or it is very busy. This page finds it again by itself when it is back.');
  }
  if (!answer.ok) throw await problem(answer);
  return answer;
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function get(path, signal) {
  return (await ask(path, { signal })).json();
}

/**
 * Changes something.
 * @param {string} method
 * @param {string} path
 * @param {object} [body]
 * @returns {Promise<any>}
 */
export async function change(method, path, body) {
  const headers = { 'X-Uniroute': '1', 'Content-Type': 'application/json' };
  const answer = await ask(path, { method, headers, body: body && JSON.stringify(body) });
  const text = await answer.text();
  return text ? JSON.parse(text) : {};
}

/**
 * Where a body is.
 * @param {string} id
 * @param {'request' | 'response'} side
 */
export function bodyPath(id, side) {
  return `requests/${id}/${side}/body`;
}

/** Between attempts to reach an agent that is gone, in milliseconds; the last one is repeated. */
const PAUSES = [300, 1000, 2000, 3000];
/** A page that nobody looks at gives its connection back after this, in milliseconds. */
const ASLEEP = 30_000;

/**
 * The stream of events, kept up. `connecting` before the first answer, then `live`, `gone` (no agent
 * answers) or `refused` (it answers, but has no stream for this page).
 */
export class Live {
  /** @param {{opened(): void, request(row: any): void, status(status: any): void, reset(): void, state(state: string, why: string): void}} handler */
  constructor(handler) {
    this.handler = handler;
    this.state = 'connecting';
    this.tries = 0;
    /** @type {EventSource | null} */
    this.source = null;
    /** @type {number | undefined} */
    this.timer = undefined;
    document.addEventListener('visibilitychange', () => this.look());
  }

  start() {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.source?.close();
    const source = new EventSource('/api/v1/events');
    this.source = source;
    source.onopen = () => {
      this.tries = 0;
      this.turn('live', '');
      this.handler.opened();
    };
    source.onerror = () => this.lost(source);
    source.addEventListener('request', (event) => this.handler.request(JSON.parse(event.data)));
    source.addEventListener('status', (event) => this.handler.status(JSON.parse(event.data)));
    source.addEventListener('reset', () => this.handler.reset());
  }

  /** @param {EventSource} source */
  async lost(source) {
    source.close();
    if (this.source !== source) return;
    this.source = null;
    this.timer = setTimeout(() => this.start(), PAUSES[Math.min(this.tries, PAUSES.length - 1)]);
    this.tries += 1;
    try {
      await get('status');
      // A stream may end because the agent restarted in between; the second time it is no accident.
      if (this.tries > 1) this.turn('refused', 'The agent lets at most 16 pages follow along. Close one that you do not need.');
    } catch (fault) {
      if (!this.source) this.turn('gone', fault instanceof Problem && fault.status ? `${fault.title}: ${fault.detail}` : '');
    }
  }

  /** @param {string} state @param {string} why */
  turn(state, why) {
    if (this.state === state) return;
    this.state = state;
    this.handler.state(state, why);
  }

  look() {
    clearTimeout(this.sleep);
    if (document.visibilityState === 'visible') {
      if (!this.source && this.timer === undefined) this.start();
      return;
    }
    this.sleep = setTimeout(() => {
      clearTimeout(this.timer);
      this.timer = undefined;
      this.source?.close();
      this.source = null;
    }, ASLEEP);
  }
}
