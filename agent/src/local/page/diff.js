// @ts-check
// Two answers side by side: what the agent found to differ.

import { get } from './api.js';
import { button, clock, duration, h, icon, line, number, outcome, plain } from './dom.js';

/** @typedef {import('./types').Summary} Summary */

/** Equal lines that stay around a difference; more of them are folded. */
const AROUND = 3;

export class DiffView {
  /** @param {Summary} row @param {string | null} other @param {import('./types').App} app */
  constructor(row, other, app) {
    this.row = row;
    this.app = app;
    this.other = other;
    this.stop = new AbortController();
    this.element = h('div', { class: 'diff' });
    this.build();
  }

  close() {
    this.stop.abort();
  }

  build() {
    const { row, app, other } = this;
    const alike = app.alike(row).filter((near) => near.id !== other);
    const chosen = other ? app.find(other) : undefined;
    const select = h(
      'select',
      { id: 'diff-with', onchange: () => app.compare(row.id, select.value || null) },
      !other && h('option', { value: '' }, 'Choose a request'),
      other && h('option', { value: other, selected: true }, chosen ? this.name(chosen) : `${other.slice(0, 8)}…`),
      alike.map((near) => h('option', { value: near.id }, this.name(near))),
    );
    const result = h('div', {});
    this.element.replaceChildren(
      h(
        'div',
        { class: 'diff-head' },
        h('label', { class: 'label', for: 'diff-with' }, 'This answer against that of'),
        select,
        button('diff', 'Pick it in the list', () => app.pick(row.id), { words: 'Pick in the list' }),
      ),
      result,
    );
    if (!other) {
      const words = alike.length
        ? 'Choose one that you want to compare with: replays and requests of the same path are offered first.'
        : 'There is no other request of this path yet. Replay it (r), or pick any in the list.';
      result.append(h('p', { class: 'dim' }, words));
      return;
    }
    result.append(h('p', { class: 'dim' }, 'Comparing…'));
    const path = `diff?a=${encodeURIComponent(other)}&b=${encodeURIComponent(row.id)}`;
    get(path, this.stop.signal).then(
      (diff) => result.replaceChildren(...this.result(diff, chosen)),
      (fault) => {
        if (!this.stop.signal.aborted) result.replaceChildren(h('p', { class: 'fault' }, plain([fault.title, fault.detail].filter(Boolean).join(': '))));
      },
    );
  }

  /** @param {Summary} row */
  name(row) {
    const role = row.id === this.row.replay_of ? 'Original: ' : row.replay_of === this.row.id ? 'Replay: ' : '';
    return line(`${role}${clock(row.started_ms)} ${row.method} ${row.path.slice(0, 60)} → ${outcome(row).text}`);
  }

  /** @param {import('./types').Diff} diff @param {Summary | undefined} other */
  result(diff, other) {
    const [a, b] = diff.status;
    const same = a === b && diff.headers.length === 0 && diff.body.same;
    const times = other ? `${duration(other.duration_us)} → ${duration(this.row.duration_us)}` : '';
    return [
      same && h('p', { class: 'note good' }, 'The two answers are the same.'),
      h(
        'table',
        { class: 'pairs changes' },
        h('thead', {}, h('tr', {}, h('th', {}, ''), h('th', { scope: 'col' }, 'That answer'), h('th', { scope: 'col' }, 'This answer'))),
        h(
          'tbody',
          {},
          changed('Status', a === null ? 'none' : String(a), b === null ? 'none' : String(b), a !== b),
          times && other && changed('Time', duration(other.duration_us), duration(this.row.duration_us), false),
          diff.headers.map((field) => changed(plain(field.name), field.a === undefined ? null : plain(field.a), field.b === undefined ? null : plain(field.b), true)),
        ),
      ),
      h(
        'section',
        { class: 'block' },
        h('div', { class: 'block-head' }, h('h3', {}, 'Body', h('span', { class: 'dim' }, diff.body.same ? ' the same' : ' different'))),
        diff.body.note && h('p', { class: 'note' }, plain(diff.body.note)),
        !diff.body.same && diff.body.hunks.length > 0 && hunks(diff.body.hunks),
      ),
    ].filter((part) => part !== false);
  }
}

/** @param {string} name @param {string | null} a @param {string | null} b @param {boolean} different */
function changed(name, a, b, different) {
  return h(
    'tr',
    {},
    h('th', { scope: 'row' }, name),
    h('td', { class: different ? 'was' : '' }, a ?? h('span', { class: 'dim' }, 'absent')),
    h('td', { class: different ? 'is' : '' }, b ?? h('span', { class: 'dim' }, 'absent')),
  );
}

/** @param {{tag: string, lines: string[]}[]} parts */
function hunks(parts) {
  const block = h('div', { class: 'hunks', role: 'group', 'aria-label': 'Differences of the bodies', tabindex: '0' });
  parts.forEach(({ tag, lines }, index) => {
    if (tag !== 'equal') {
      block.append(...lines.map((text) => hunkLine(tag, text)));
      return;
    }
    const before = index === 0 ? 0 : AROUND;
    const after = index === parts.length - 1 ? 0 : AROUND;
    if (lines.length <= before + after + 2) {
      block.append(...lines.map((text) => hunkLine(tag, text)));
      return;
    }
    const folded = lines.slice(before, lines.length - after);
    const fold = h('button', { type: 'button', class: 'fold' }, icon('chevron'), `${number(folded.length)} equal lines`);
    fold.addEventListener('click', () => fold.replaceWith(...folded.map((text) => hunkLine(tag, text))));
    block.append(...lines.slice(0, before).map((text) => hunkLine(tag, text)), fold, ...lines.slice(lines.length - after).map((text) => hunkLine(tag, text)));
  });
  return block;
}

/** @param {string} tag @param {string} text */
function hunkLine(tag, text) {
  const mark = { insert: '+', delete: '−', equal: ' ' }[tag] ?? ' ';
  return h('div', { class: `hunk ${tag}` }, h('span', { class: 'mark' }, mark), h('span', {}, plain(text)));
}
