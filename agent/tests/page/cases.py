"""The inspector's page in Chromium, against made-up requests. Each case that holds prints a line `ok …`.

python cases.py FOLDER   screenshots are left in the folder
"""

import json
import sys
import time
import traceback
from pathlib import Path

from browser import Browser, Failed
from mock import HOSTILE, Mock

# What a reader waits for after a key, a letter or a turn of the wheel, in milliseconds.
REACTS = 100
# Between two letters of somebody who types fast, in seconds.
PACE = 0.05
# Tests share a machine with others: one slow frame in twenty says nothing of the page, nor do frames
# that a busy machine was late with. A page that is slow is slow in every round.
QUANTILE = 0.95
ROUNDS = 4
# A machine that is busy with other things in all rounds says nothing of the page's time. What counts
# then is the processor time that the page takes for each, in milliseconds: with a frame it is in time.
WORK = 40

ROWS = "document.querySelectorAll('.rows .row').length"
FIRST_PATH = "document.querySelector('.rows .row[data-index=\"0\"] .words')?.textContent"
TAB = "document.querySelector('[role=tab][aria-selected=true]')?.dataset.tab"

# Times from an event to the frame that shows what came of it.
WATCH = """
window.times = [];
window.clock = (...kinds) => kinds.forEach((kind) => addEventListener(kind, (event) => {
  const from = event.timeStamp;
  requestAnimationFrame(() => {
    const port = new MessageChannel();
    port.port1.onmessage = () => window.times.push(performance.now() - from);
    port.port2.postMessage(0);
  });
}, true));
"""

# Times from a turn of the wheel, to anywhere, to the frame that has the rows there.
SCROLL = """
(async () => {
  const host = document.querySelector('.rows');
  const times = [];
  for (let turn = 1; turn <= 30; turn += 1) {
    const from = performance.now();
    host.scrollTop = ((turn * 7919) % 9900) * 32;
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    const index = Math.floor(host.scrollTop / 32) + 3;
    const row = document.querySelector(`.rows .row[data-index="${index}"]`);
    const there = row && document.elementFromPoint(100, host.getBoundingClientRect().top + 3.5 * 32)?.closest('.row') === row;
    times.push(there ? performance.now() - from : 9999);
  }
  return times;
})()
"""

# Text whose contrast with what it stands on is below 4.5.
CONTRAST = """
(() => {
  const parse = (text) => { const found = text.match(/[\\d.]+/g)?.map(Number) ?? [0, 0, 0, 0]; return [...found.slice(0, 3), found[3] ?? 1]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const over = (front, back) => [0, 1, 2].map((at) => front[at] * front[3] + back[at] * (1 - front[3]));
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) { const colour = parse(getComputedStyle(at).backgroundColor); if (colour[3] > 0) { layers.push(colour); if (colour[3] === 1) break; } }
    return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255]);
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest('noscript, option')) continue;
    const back = ground(element);
    const [a, b] = [light(over(parse(getComputedStyle(element).color), back)), light(back)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) poor.push(`${element.className || element.tagName} ${walk.currentNode.data.trim().slice(0, 30)} ${contrast.toFixed(2)}`);
  }
  return [...new Set(poor)];
})()
"""

# What has words that are wider than their place, where nothing says that they were cut.
CLIPPED = """
[...document.querySelectorAll('.header *, .toolbar .tools *, .actions *, .tabs *, .banner *, .facts *, .leg *, .row:not(.head) .status, .row:not(.head) .time, .row:not(.head) .when, .row:not(.head) .size, .row.head .cell')]
  .filter((element) => element.checkVisibility() && element.getClientRects().length && element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0)
  .filter((element) => getComputedStyle(element).overflowX !== 'auto' && !['A', 'SPAN'].includes(element.tagName) || element.matches('.cell'))
  .map((element) => `${element.className} ${element.textContent.slice(0, 40)} ${element.scrollWidth} > ${element.clientWidth}`)
"""


def check(held, *told):
    if not held:
        raise Failed(" ".join(str(word) for word in told))


def reacts(tab, name, measure):
    """In one of the rounds nearly all came in time, or would have on a machine with time to spare."""
    for at in range(ROUNDS):
        before = work(tab)
        values = sorted(measure())
        each = (work(tab) - before) / len(values)
        slow = values[min(len(values) - 1, int(len(values) * QUANTILE))]
        print(f"figure {name}: {len(values)} times, median {values[len(values) // 2]:.0f} ms, slow ones {slow:.0f} ms, work {each:.1f} ms", flush=True)
        if slow < REACTS:
            return
        time.sleep(at / 2)
    check(each < WORK, f"{name} takes {slow} ms and {each} ms of work: {values}")


def work(tab):
    """Milliseconds of processor time that the page's own thread has had."""
    metrics = tab.call("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration") * 1000


class Cases:
    def __init__(self, shots):
        self.shots = Path(shots)
        self.browser = Browser()
        self.many = Mock(10_000)

    def open(self, mock, **options):
        tab = self.browser.page(mock.url + options.pop("at", "/"), **options)
        tab.until("rows", f"{ROWS} > 0")
        return tab

    def whole(self, tab):
        """Waits until the page has all requests."""
        tab.until("all requests", f"document.querySelector('.tools .figures').textContent.startsWith('{len(self.many.requests):,} ')")
        # Until nothing is drawn any more.
        tab.run("new Promise((resolve) => setTimeout(resolve, 300))")

    def clean(self, tab, mock):
        """Nothing failed, and nobody else was asked."""
        check(tab.complaints() == [], tab.complaints())
        foreign = [url for url in tab.requests() if not url.startswith((mock.url + "/", "data:image/", "blob:"))]
        check(foreign == [], foreign)
        check(tab.mine("Page.javascriptDialogOpening") == [])

    def keys_letters_and_scrolling_react_at_once(self):
        tab = self.open(self.many)
        first = tab.run("performance.now()")
        print(f"figure first rows: {first:.0f} ms after the page began", flush=True)
        self.whole(tab)
        tab.call("Performance.enable", timeDomain="threadTicks")
        tab.run(WATCH + "window.clock('keydown', 'input')")
        tab.key("j")
        tab.key("Enter")
        tab.until("the detail", "document.querySelector('.facts')")
        reacts(tab, "key", lambda: self.press(tab))
        tab.key("Escape")
        tab.key("/")
        reacts(tab, "letter", lambda: self.letters(tab))
        tab.key("Escape")
        self.whole(tab)
        reacts(tab, "scroll", lambda: tab.run(SCROLL))
        check(tab.run(ROWS) < 120, tab.run(ROWS), "rows in the page")
        self.clean(tab, self.many)
        tab.close()

    def press(self, tab):
        tab.run("window.times = []")
        for key in "jjjjjkkkjjjjjjjjjjjj":
            before = tab.run("document.querySelector('.row.active').id")
            tab.key(key)
            check(tab.run("document.querySelector('.row.active').id") != before, key)
        return tab.run("window.times")

    def letters(self, tab):
        """Times of keys and of the letters that they made: each has a frame of its own."""
        tab.run("document.querySelector('#search').select(); window.times = []")
        for letter in "invoices status:2xx":
            tab.key(letter)
            time.sleep(PACE)
        times = tab.run("window.times")
        tab.until("what matches", "/^[1-9][\\d,]* of 10,000$/.test(document.querySelector('.tools .figures').textContent)")
        return times

    def what_is_looked_at_stays_while_new_ones_come(self):
        mock = Mock(400)
        tab = self.open(mock)
        tab.until("all requests", "document.querySelector('.tools .figures').textContent === '400 requests' && document.querySelectorAll('.rows .row').length > 30")
        tab.run("window.shifts = 0; window.moved = []; new PerformanceObserver((list) => list.getEntries().forEach((entry) => { if (!entry.hadRecentInput) { window.shifts += entry.value; window.moved.push(...entry.sources.map((source) => source.node?.className ?? source.node?.nodeName)); } })).observe({ type: 'layout-shift', buffered: true })")
        tab.run("document.querySelector('.rows').scrollTop = 2010; new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")
        spot = "(() => { const host = document.querySelector('.rows').getBoundingClientRect(); const row = document.elementFromPoint(90, host.top + 150).closest('.row'); return row.id + ' ' + row.getBoundingClientRect().top; })()"
        before = tab.run(spot)
        for _ in range(7):
            mock.add(mock.maker.make(time.time() * 1000))
        tab.until("7 new", "document.querySelector('.chip')?.checkVisibility() && document.querySelector('.chip').textContent === '7 new'")
        check(tab.run(spot) == before, before, tab.run(spot))
        tab.click(".chip")
        tab.until("the top", "document.querySelector('.rows').scrollTop === 0 && document.querySelector('.chip').hidden")
        newest = mock.requests[-1]
        check(tab.run(f"document.getElementById('row-{newest['id']}').dataset.index") == "0")
        opened = mock.maker.make(time.time() * 1000, "open")
        opened.update(status=None, duration_us=None)
        mock.add(opened)
        tab.until("an open one", f"document.querySelector('#row-{opened['id']} .status')?.textContent === 'open'")
        mock.change(opened, state="done", status=418, duration_us=5000)
        tab.until("its end", f"document.querySelector('#row-{opened['id']} .status').textContent === '418'")
        tab.key("p")
        mock.add(mock.maker.make(time.time() * 1000))
        tab.until("one waits", "document.querySelector('.tools .figures').textContent.endsWith('1 wait')")
        check(tab.run(f"document.getElementById('row-{opened['id']}').dataset.index") == "0")
        tab.key("p")
        tab.until("it came", f"document.getElementById('row-{opened['id']}').dataset.index === '1'")
        check(tab.run("window.shifts") < 0.02, "layout shift", tab.run("window.shifts"), tab.run("window.moved"))
        self.clean(tab, mock)
        tab.close()
        mock.stop()

    def the_search_is_the_agents_and_follows_what_comes(self):
        mock = Mock(300)
        tab = self.open(mock)
        tab.key("/")
        # In a header only, which the list does not show.
        tab.type("firefox/134 -get")
        count = "document.querySelector('.tools .figures').textContent"
        wanted = sum(1 for made in mock.requests if made["method"] != "GET")
        tab.until("what the agent finds", f"{count} === '{wanted} of 300'")
        made = mock.maker.make_post(mock.maker.base(time.time() * 1000, None))
        mock.maker.seq += 1
        made.update(seq=mock.maker.seq, id="ab" * 16)
        mock.add(made)
        tab.until("a new one that matches", f"{count} === '{wanted + 1} of 301'")
        mock.add(mock.maker.make_json(mock.maker.base(time.time() * 1000, None)) | {"seq": mock.maker.seq + 1, "id": "cd" * 16})
        mock.maker.seq += 1
        tab.until("one that does not", f"{count} === '{wanted + 1} of 302'")
        tab.key("Escape")
        tab.until("all again", f"{count} === '302 requests'")
        tab.run("document.querySelector('[data-word=\"is:websocket\"]').click()")
        tab.until("the word in the address", "location.hash.includes('q=is%3Awebsocket') && /^\\d+ of/.test(document.querySelector('.tools .figures').textContent)")
        check("q=is%3Awebsocket" in tab.run("document.querySelector('a[download=\"uniroute.har\"]').href"))
        tab.key("/")
        tab.type(" nothing-has-this")
        tab.until("words instead of rows", "document.querySelector('.empty h2')?.textContent === 'Nothing matches'")
        self.clean(tab, mock)
        tab.close()
        mock.stop()

    def all_is_done_with_the_keyboard(self):
        mock = Mock(200)
        post = mock.maker.make_post(mock.maker.base(time.time() * 1000, None) | {"seq": 1000, "id": "ef" * 16})
        mock.maker.seq = 1000
        mock.add(post)
        tab = self.open(mock)
        names = []
        for _ in range(24):
            tab.key("Tab")
            if tab.run("document.activeElement === document.body"):
                break
            names.append(tab.run("(() => { const at = document.activeElement; const seen = at.checkVisibility() && (at.matches('.skip') || at.getBoundingClientRect().width > 0); const ring = getComputedStyle(at).outlineStyle !== 'none' || at.closest('.search') || at.matches('.grid'); const name = at.getAttribute('aria-label') || at.textContent.trim() || at.labels?.[0]?.textContent || at.title; return [seen && !!ring, name]; })()"))
        check(len(names) > 15 and all(seen and name for seen, name in names), names)
        tab.run("document.activeElement.blur()")
        tab.key("j")
        tab.key("Enter")
        tab.until("the overview", f"{TAB} === 'overview' && document.querySelector('.facts')")
        tab.key("2")
        tab.until("the request", f"{TAB} === 'request' && document.querySelector('.json')")
        check("s3cr3t-of-the-hook" not in tab.run("document.body.textContent"))
        tab.key("3")
        tab.until("the answer", f"{TAB} === 'response' && document.querySelector('.status-line')")
        tab.key("e")
        tab.until("the form", "document.activeElement.id === 'replay-headers'")
        for _ in range(2):
            tab.key("Tab", 8)
        check(tab.run("document.activeElement.id") == "replay-path", tab.run("document.activeElement.id"))
        tab.run("document.activeElement.setSelectionRange(99, 99)")
        tab.type("?twice=1")
        tab.key("Enter", 2)
        tab.until("a replay", "document.querySelector('.callout.info')")
        check(mock.replays == [(post["id"], {"path": post["path"] + "?twice=1"})], mock.replays)
        self.browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"], browserContextId=tab.context)
        tab.key("c")
        tab.until("that it is copied", "[...document.querySelectorAll('.toast')].some((one) => one.textContent.includes('curl command copied'))")
        check(tab.run("navigator.clipboard.readText()").startswith("curl -X POST 'https://demo.tunnel.example.com/"), "the clipboard")
        tab.key("d")
        tab.until("the comparison", f"{TAB} === 'diff' && document.querySelector('.hunk.insert')")
        check(tab.run("document.querySelector('#diff-with').value") == post["id"])
        again = tab.run("location.hash")
        tab.key("r")
        tab.until("another replay", "document.querySelectorAll('.toast').length && " + TAB + " === 'overview'")
        check(len(mock.replays) == 2 and mock.replays[1][1] == {}, mock.replays)
        tab.run("history.back()")
        tab.until("where it was", f"location.hash === {json.dumps(again)} && document.querySelector('.hunk')")
        tab.call("Page.reload")
        tab.until("the same after a reload", f"location.hash === {json.dumps(again)} && document.querySelector('.hunk') && {ROWS} > 0")
        tab.key("?")
        tab.until("help", "document.querySelector('dialog[open] kbd')")
        tab.key("Escape")
        tab.until("no help", "!document.querySelector('dialog')")
        tab.key("t")
        tab.until("the panel", "document.querySelector('#panel table')?.checkVisibility()")
        tab.key("Escape")
        tab.key("Escape")
        tab.until("the list", "document.querySelector('#detail').hidden && document.querySelector('#panel').hidden && document.activeElement.matches('.grid')")
        tab.key("G")
        tab.until("the oldest", "document.querySelector('.row.active')?.dataset.index === '202'")
        oldest = tab.run("document.querySelector('.row.active').id.slice(4)")
        tab.key("d")
        tab.until("nothing to compare with yet", f"{TAB} === 'diff' && document.querySelector('.diff-head .button')")
        tab.run("document.querySelector('.diff-head .button').focus()")
        tab.key("Enter")
        tab.key("k")
        tab.key("Enter")
        tab.until("the one that was picked", f"document.querySelector('.changes') && location.hash.includes('id={oldest}') && location.hash.includes('with=')")
        tab.key("Escape")
        tab.run("location.hash = 'q=is%3Awebsocket'")
        tab.until("sockets", "document.querySelector('.rows .row .kind')?.textContent === 'WS' && /^\\d+ of/.test(document.querySelector('.tools .figures').textContent)")
        tab.key("g")
        tab.key("Enter")
        tab.until("tabs", "document.querySelector('[data-tab=frames] .count')")
        tab.key("4")
        tab.until("messages", "document.querySelectorAll('.frame').length > 10")
        tab.run("document.querySelector('.frame-rows').focus()")
        tab.key("ArrowDown")
        tab.until("a message", "document.querySelector('.message .json')")
        check(tab.run("document.querySelectorAll('.frame.visitor').length") > 3)
        tab.run("document.querySelector('[aria-label=\"Forget all requests\"]').click()")
        tab.until("the question", "document.querySelector('dialog[open] h2').textContent === 'Forget 203 requests?'")
        tab.key("Tab")
        tab.key("Enter")
        tab.until("an empty list", "document.querySelector('.tools .figures').textContent === '0 of 0' && document.querySelector('#detail').hidden")
        check(mock.requests == [])
        self.clean(tab, mock)
        tab.close()
        mock.stop()

    def nothing_that_was_captured_runs(self):
        mock = Mock(0, tunnels=len(HOSTILE), hostile=True)
        tab = self.open(mock)
        tab.key("t")
        for at in range(len(HOSTILE)):
            tab.run("document.querySelector('.grid').focus()")
            tab.key("j") if at else tab.key("g")
            if at == 0:
                tab.key("Enter")
            made = mock.requests[-1 - at]
            tab.until("it is open", f"location.hash.includes('{made['id']}')")
            for name, there in [("overview", ".facts"), ("request", ".pairs"), ("response", ".body-place pre"), ("frames", ".frame"), ("replay", "#replay-path"), ("diff", ".diff select")]:
                tab.run(f"document.querySelector('[data-tab={name}]')?.click()")
                tab.until(name, f"{TAB} === '{name}' && document.querySelector('.tab-{name} {there}')")
                if name == "frames":
                    tab.run("document.querySelectorAll('.frame').forEach((frame) => frame.click())")
                    tab.until("a message", "document.querySelector('.message-body')")
                if name == "response" and at == 0:
                    # As text, as it was sent.
                    check(HOSTILE[-1].replace("\u202e", "\\u202e").replace("\u202c", "\\u202c") in tab.run("document.querySelector('.body-place pre').textContent"))
        # What would have been loaded or run has had its time.
        tab.run("new Promise((resolve) => setTimeout(resolve, 300))")
        made_up = tab.run("[...document.querySelectorAll('script, iframe, object, embed, base, meta[http-equiv], form[action], img, video, math, svg image')].map((element) => element.outerHTML)")
        check(len(made_up) == 2, made_up)
        check(tab.run("[...document.querySelectorAll('a')].every((a) => !/^(javascript|data)/i.test(a.href))"))
        check(tab.run("'polluted' in {}") is False)
        self.clean(tab, mock)
        tab.close()
        mock.stop()

    def bodies_are_shown_as_what_they_are(self):
        mock = Mock(0)
        for make in ["json", "image", "binary", "form", "huge"]:
            mock.maker.seq += 1
            mock.add(getattr(mock.maker, f"make_{make}")(mock.maker.base(time.time() * 1000, None)) | {"id": f"{mock.maker.seq:032x}"})
        tab = self.open(mock, at="/#id=" + f"{1:032x}" + "&tab=response")
        tab.until("a tree", "document.querySelector('.json')")
        check("12345678901234567890" in tab.run("document.querySelector('.json').textContent"), "the number is changed")
        tab.run("[...document.querySelectorAll('.segments button')].find((one) => one.textContent === 'Pretty').click()")
        check('\n  "big": 12345678901234567890,' in tab.run("document.querySelector('pre.text').textContent"))
        before = len(tab.requests())
        tab.run(f"location.hash = 'id={2:032x}&tab=response'")
        tab.until("the offer", "document.querySelector('.image button')")
        check(not any("/body" in url for url in tab.requests()[before:]), "loaded unasked")
        tab.run("document.querySelector('.image button').click()")
        tab.until("the image", "document.querySelector('.image img')?.naturalWidth === 48 && document.querySelector('figcaption').textContent === '48 × 48'")
        tab.run(f"location.hash = 'id={3:032x}&tab=response'")
        tab.until("bytes", "document.querySelector('pre.hex')?.textContent.startsWith('000000  00 01 02 03 04 05 06 07  08')")
        tab.run(f"location.hash = 'id={4:032x}&tab=request'")
        tab.until("fields", "[...document.querySelectorAll('.body-place th')].map((one) => one.textContent).join() === 'name,password,remember,next'")
        check(tab.run("document.querySelectorAll('.body-place td')[1].textContent") == "***")
        tab.run(f"location.hash = 'id={5:032x}&tab=response'")
        tab.until("what is kept", "document.querySelector('.note')?.textContent.includes('Of 1.3 GB, the first 66 kB are kept')")
        self.clean(tab, mock)
        tab.close()
        mock.stop()

    def an_agent_that_is_gone_is_said_and_found_again(self):
        mock = Mock(20)
        tab = self.open(mock)
        tab.key("j")
        mock.stop()
        tab.until("that it is gone", "document.querySelector('.banner.bad')?.textContent.includes('The agent does not answer')")
        check(tab.run(ROWS) == 20 and "Agent stopped" in tab.run("document.querySelector('.header').textContent"))
        tab.shot(self.shots / "gone-light.png")
        tab.key("r")
        tab.until("why nothing happens", "document.querySelector('.toast.bad')?.textContent.includes('The agent does not answer')")
        mock.start()
        tab.until("that it is back", "!document.querySelector('.banner.bad')")
        made = mock.maker.make(time.time() * 1000)
        mock.add(made)
        tab.until("what is new", f"document.getElementById('row-{made['id']}')")
        mock.stop()
        tab.until("that it is gone again", "document.querySelector('.banner.bad')")
        mock.again()
        tab.until("another agent's list", "document.querySelector('.empty h2')?.textContent === 'Waiting for the first request'")
        check("curl -i https://demo.tunnel.example.com" in tab.run("document.querySelector('.empty').textContent"))
        tab.shot(self.shots / "empty-light.png")
        mock.recording = False
        mock.tell("status", mock.status())
        tab.until("that nothing is recorded", "document.querySelector('.banner.info')?.textContent.includes('not recorded')")
        tab.run("document.querySelector('.banner.info button').click()")
        tab.until("that it is", "!document.querySelector('.banner.info')")
        check(mock.recording)
        tab.close()
        mock.stop()

    def it_looks_right_wide_and_narrow_light_and_dark(self):
        several = Mock(300, tunnels=4, upstream_down=True)
        for width, height, size in [(1440, 900, "wide"), (900, 700, "middle"), (400, 800, "narrow")]:
            for dark in [False, True]:
                look = f"{size}-{'dark' if dark else 'light'}"
                mock = self.many if size == "wide" else several
                tab = self.open(mock, width=width, height=height, dark=dark, mobile=size == "narrow")
                tab.until("the tunnels", "document.querySelector('.tunnels').textContent")
                self.inspect(tab, f"list-{look}", width)
                tab.run("location.hash = 'q=method%3APOST+path%3Awebhooks'")
                tab.until("less", "document.querySelector('.rows .row .words')?.textContent.startsWith('/webhooks')")
                tab.run("document.querySelector('.grid').focus()")
                tab.key("g")
                tab.key("Enter")
                tab.until("one", "document.querySelector('.facts')")
                self.inspect(tab, f"overview-{look}", width)
                tab.key("2")
                tab.until("its request", "document.querySelector('.json')")
                self.inspect(tab, f"request-{look}", width)
                if size != "middle":
                    tab.key("e")
                    tab.until("the form", "document.querySelector('#replay-headers')")
                    self.inspect(tab, f"replay-{look}", width)
                self.clean(tab, mock)
                tab.close()
        several.stop()

    def inspect(self, tab, name, width):
        poor = tab.run(CONTRAST)
        check(poor == [], name, "poor contrast:", poor)
        check(tab.run("document.documentElement.scrollWidth") <= width, name, "is wider than the window")
        clipped = tab.run(CLIPPED)
        check(clipped == [], name, "clipped:", clipped)
        tab.shot(self.shots / f"{name}.png")


def main():
    cases = Cases(sys.argv[1])
    only = sys.argv[2:]
    failed = False
    try:
        for name, case in vars(Cases).items():
            if "_" not in name.strip("_") or (only and name not in only):
                continue
            began = time.monotonic()
            try:
                case(cases)
                print(f"ok {name} {time.monotonic() - began:.1f} s", flush=True)
            except Exception:
                failed = True
                print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
    finally:
        cases.browser.close()
    sys.exit(failed)


if __name__ == "__main__":
    main()
