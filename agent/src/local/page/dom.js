// @ts-check
// Elements, words for figures, the clipboard. Nothing here takes HTML: what was captured is text.

/**
 * An element. `on…` are listeners, everything else is an attribute; a child that is no element is text.
 * Attributes' names are this page's own words, never captured ones.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, any>} [props]
 * @param {...any} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'class') element.className = value;
    else if (name === 'value') /** @type {any} */ (element).value = value;
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Line drawings of 16 by 16. */
const ICONS = {
  copy: 'M5.5 5.5h7v8h-7zM10.5 5.5v-3h-7v8h2',
  open: 'M6 3.5H3.5v9h9V10M9 3h4v4M13 3 7.5 8.5',
  pause: 'M5.5 3.5v9M10.5 3.5v9',
  play: 'M5 3.5v9l7-4.5z',
  trash: 'M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.5 9h6l.5-9M6.8 7v4M9.2 7v4',
  download: 'M8 2.5v7.5M4.8 7 8 10.2 11.2 7M3 13.5h10',
  close: 'M4 4l8 8M12 4l-8 8',
  back: 'M9.5 3.5 5 8l4.5 4.5',
  replay: 'M3.2 8a4.8 4.8 0 1 0 1.6-3.6M4.8 1.8v2.8h2.8',
  edit: 'M3 13l.6-2.8 7.2-7.2 2.2 2.2-7.2 7.2zM9.4 4.4l2.2 2.2',
  diff: 'M5 2.5v5M2.5 5h5M9 11h4.5M12.5 3.5l-9 9.5',
  search: 'M7 11.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM10.4 10.4 13.5 13.5',
  chevron: 'M4.5 6.5 8 10l3.5-3.5',
  up: 'M8 13V3.5M4 7.2 8 3.2l4 4',
  terminal: 'M3 4.5 6.5 8 3 11.5M8 12h5',
  warn: 'M8 2.5 14 13H2zM8 6.5v3M8 11.2v.3',
  wrap: 'M2.5 4h11M2.5 8h8.5a2 2 0 0 1 0 4H8M9.5 10.4 7.8 12l1.7 1.6M2.5 12h3',
};

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  svg.setAttribute('viewBox', '0 0 16 16');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(space, 'path');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button with a drawing; `label` is what it is called, shown if `words` is.
 * @param {keyof typeof ICONS | null} drawing
 * @param {string} label
 * @param {(event: MouseEvent) => void} press
 * @param {{words?: string, class?: string, key?: string, disabled?: boolean}} [options]
 */
export function button(drawing, label, press, options = {}) {
  const title = options.key ? `${label} (${options.key})` : label;
  return h(
    'button',
    {
      type: 'button',
      class: `button ${options.words ? '' : 'bare'} ${options.class ?? ''}`,
      title,
      'aria-label': options.words === label ? null : label,
      'aria-keyshortcuts': options.key ?? null,
      disabled: options.disabled,
      onclick: press,
    },
    drawing && icon(drawing),
    options.words ? h('span', {}, options.words) : null,
  );
}

/**
 * A link that opens beside this page; only text if it is no web address.
 * @param {string} url
 * @param {...any} children
 */
export function outward(url, ...children) {
  let web = false;
  try {
    web = ['http:', 'https:'].includes(new URL(url).protocol);
  } catch {
    // Not an address: `tcp://…` and the like are shown as they are.
  }
  if (!web) return h('span', {}, ...children);
  return h('a', { href: url, target: '_blank', rel: 'noopener noreferrer' }, ...children);
}

const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** @param {string} char */
function escaped(char) {
  return `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;
}

/**
 * Text in which nothing is hidden: what turns the direction of writing or has no width is spelled out.
 * Lines and tabs stay.
 * @param {string} text
 */
export function plain(text) {
  return text.replace(/\r\n/g, '\n').replace(HIDDEN, escaped);
}

/** @param {string} text the same on one line */
export function line(text) {
  return plain(text).replace(/\n/g, '\\n').replace(/\t/g, '\\t');
}

/** @param {number} count */
export function number(count) {
  return count.toLocaleString('en-US');
}

/**
 * @param {number} count
 * @param {string} one
 * @param {string} [many]
 */
export function counted(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** @param {number} size */
export function bytes(size) {
  if (size < 1000) return `${size} B`;
  const units = ['kB', 'MB', 'GB', 'TB'];
  let value = size / 1000;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** @param {number | null | undefined} us */
export function duration(us) {
  if (us === null || us === undefined) return '';
  if (us < 1000) return `${us} µs`;
  if (us < 9_950) return `${(us / 1000).toFixed(1)} ms`;
  if (us < 999_500) return `${Math.round(us / 1000)} ms`;
  if (us < 59_995_000) return `${(us / 1e6).toFixed(2)} s`;
  const seconds = Math.round(us / 1e6);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

const two = (/** @type {number} */ value) => String(value).padStart(2, '0');

/** @param {number} ms */
export function clock(ms) {
  const at = new Date(ms);
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** @param {number} ms */
export function moment(ms) {
  const at = new Date(ms);
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${clock(ms)}.${String(Math.floor(ms) % 1000).padStart(3, '0')}`;
}

/** How an answer went, as a class and in a word.
 * @param {{state: string, status: number | null, error: string | null}} row
 * @returns {{tone: string, text: string}} */
export function outcome(row) {
  if (row.state === 'failed') return { tone: 'bad', text: row.status ? String(row.status) : 'failed' };
  if (row.status === null) return { tone: 'open', text: row.state === 'open' ? 'open' : '–' };
  const tones = ['open', 'info', 'good', 'info', 'warn', 'bad'];
  return { tone: tones[Math.floor(row.status / 100)] ?? 'bad', text: String(row.status) };
}

/**
 * Puts text on the clipboard. It may still be on its way: some browsers want the clipboard asked for
 * in the key press itself.
 * @param {string | Promise<string>} text
 */
export async function copy(text) {
  const coming = Promise.resolve(text);
  try {
    const blob = coming.then((value) => new Blob([value], { type: 'text/plain' }));
    await navigator.clipboard.write([new ClipboardItem({ 'text/plain': blob })]);
    return;
  } catch {
    // Pages that are not from this machine have no clipboard; the old way works there.
  }
  const value = await coming;
  const field = h('textarea', { class: 'offscreen', readonly: true, 'aria-hidden': 'true' });
  field.value = value;
  const focused = /** @type {HTMLElement | null} */ (document.activeElement);
  (focused?.closest('dialog') ?? document.body).append(field);
  field.select();
  const done = document.execCommand('copy');
  field.remove();
  focused?.focus();
  if (!done) throw new Error('The browser did not let the page use the clipboard.');
}

/** How long a message stays, in milliseconds. */
const TOAST = 4000;
/** At most so many at once. */
const TOASTS = 3;

/**
 * A message that goes by itself; a fault stays until it is closed.
 * @param {string} text
 * @param {{tone?: 'good' | 'bad', detail?: string, action?: HTMLElement}} [options]
 */
export function toast(text, options = {}) {
  const host = /** @type {HTMLElement} */ (document.getElementById('toasts'));
  const close = () => box.remove();
  const box = h(
    'div',
    { class: `toast ${options.tone ?? 'good'}` },
    h('div', { class: 'grow' }, h('strong', {}, plain(text)), options.detail && h('p', {}, plain(options.detail))),
    options.action,
    button('close', 'Close', close),
  );
  host.append(box);
  while (host.children.length > TOASTS) host.firstElementChild?.remove();
  if (options.tone !== 'bad') setTimeout(close, TOAST);
}

/** Says what went wrong. @param {any} fault */
export function sayFault(fault) {
  if (fault?.name === 'AbortError') return;
  toast(fault?.title ?? fault?.message ?? 'It did not work', { tone: 'bad', detail: fault?.detail });
}

/**
 * Copies, and says so.
 * @param {string | Promise<string>} text
 * @param {string} what
 */
export async function copied(text, what) {
  try {
    await copy(text);
    toast(`${what} copied`);
  } catch (fault) {
    sayFault(fault);
  }
}
