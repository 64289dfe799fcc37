"""The inspector's page in Chromium, against an agent that runs, an edge and a local server.

python real.py FOLDER

Says `listening PORT` (the local server), then waits for a line `INSPECTOR EDGE HOST`: where the
inspector is, where visitors come in, and the tunnel's host. Each case that holds prints `ok …`.
"""

import http.client
import json
import sys
import threading
import time
import traceback
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from browser import Browser
from cases import CONTRAST, ROWS, TAB, check
from mock import HOSTILE, png

FIGURES = "document.querySelector('.tools .figures').textContent"


class LocalServer(BaseHTTPRequestHandler):
    """Answers with what it was told, and remembers what it was asked."""

    protocol_version = "HTTP/1.1"
    asked = []

    def log_message(self, *_):
        pass

    def answer(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.command, self.path, dict(self.headers), sent))
        path = urllib.parse.urlsplit(self.path).path
        if path == "/events":
            return self.events()
        kind, data, status = "application/json", json.dumps({"number": len(self.asked), "echo": self.read(sent)}).encode(), 200
        if path == "/logo.png":
            kind, data = "image/png", png()
        elif path == "/page":
            kind, data = "text/html; charset=utf-8", sent or b"<h1>Hello</h1>"
        elif path == "/broken":
            status = 500
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Set-Cookie", "session=s3cr3t-in-a-cookie; Path=/")
        for name, value in self.headers.items():
            if name.lower().startswith("x-echo"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    @staticmethod
    def read(sent):
        try:
            return json.loads(sent)
        except ValueError:
            return sent.decode(errors="replace")

    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(5):
            self.wfile.write(f"event: tick\nid: {number}\ndata: {json.dumps({'number': number, 'text': HOSTILE[number]})}\n\n".encode())
        self.close_connection = True

    do_GET = do_POST = do_PUT = answer


class EvilSite(BaseHTTPRequestHandler):
    """Another site's page, which asks the inspector for things."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Another site</title>")


def serve(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


class Cases:
    def __init__(self, shots, inspector, edge, host):
        self.shots, self.inspector, self.edge, self.host = Path(shots), inspector.rstrip("/"), edge, host
        self.browser = Browser()

    def visit(self, method, path, body=None, headers=None):
        """A visitor's request; its status."""
        connection = http.client.HTTPConnection(self.edge, timeout=20)
        connection.request(method, path, body, {"Host": self.host, **(headers or {})})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    def ask(self, path):
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.inspector).netloc, timeout=20)
        connection.request("GET", f"/api/v1/{path}")
        told = json.loads(connection.getresponse().read())
        connection.close()
        return told

    def clean(self, tab):
        check(tab.complaints() == [], tab.complaints())
        foreign = [url for url in tab.requests() if not url.startswith((self.inspector + "/", "data:image/", "blob:"))]
        check(foreign == [], foreign)
        check(tab.mine("Page.javascriptDialogOpening") == [])

    def a_request_shows_up_and_is_replayed(self):
        tab = self.browser.page(self.inspector + "/")
        tab.until("the welcome", "document.querySelector('.empty h2')?.textContent === 'Waiting for the first request'")
        check(self.host in tab.run("document.querySelector('.empty .hero').textContent"))
        tab.shot(self.shots / "real-empty-light.png")
        sent = json.dumps({"event": "paid", "password": "s3cr3t-in-a-body", "amount": 4200}).encode()
        check(self.visit("POST", "/hook?token=s3cr3t-in-a-query", sent, {"Content-Type": "application/json", "Authorization": "Bearer s3cr3t-in-a-header"}) == 200)
        tab.until("the request", "document.querySelector('.rows .row .status')?.textContent === '200'")
        tab.key("j")
        tab.key("Enter")
        tab.until("the overview", f"{TAB} === 'overview' && document.querySelectorAll('.leg').length >= 3")
        for key, name in [("2", "request"), ("3", "response")]:
            tab.key(key)
            tab.until(name, f"{TAB} === '{name}' && document.querySelector('.json')")
            check("s3cr3t" not in tab.run("document.body.textContent"), "a secret is shown in", name)
        tab.key("e")
        tab.until("the form", "document.activeElement.id === 'replay-headers'")
        tab.run("(() => { const field = document.querySelector('#replay-headers'); field.value += '\\nx-echo-mine: yes'; })()")
        tab.key("Enter", 2)
        tab.until("the replay", "document.querySelector('.callout.info') && document.querySelector('.badge').textContent === '200'")
        method, path, headers, body = LocalServer.asked[-1]
        check((method, path, body) == ("POST", "/hook?token=s3cr3t-in-a-query", sent), method, path, body)
        check(headers.get("x-echo-mine") == "yes" and headers.get("authorization", headers.get("Authorization")) == "Bearer s3cr3t-in-a-header", headers)
        tab.key("d")
        tab.until("the comparison", "document.querySelector('.hunk.insert') && [...document.querySelectorAll('.changes th')].some((one) => one.textContent.toLowerCase() === 'x-echo-mine')")
        self.clean(tab)
        tab.close()

    def the_search_finds_what_the_agent_finds(self):
        tab = self.browser.page(self.inspector + "/")
        self.visit("GET", "/logo.png")
        self.visit("GET", "/broken")
        self.visit("GET", "/events")
        self.visit("PUT", "/api/things", b"needle-in-a-body", {"Content-Type": "text/plain"})
        tab.until("all", f"{FIGURES} === '6 requests'")
        for q, count in [("needle-in", 1), ("is:error", 1), ("is:sse", 1), ("is:replay", 1), ("type:png", 1), ("method:post", 2), ("-method:get", 3), ("status:2xx", 5), ("path:/hook", 2)]:
            tab.run(f"location.hash = 'q={urllib.parse.quote(q)}'")
            tab.until(q, f"{FIGURES} === '{count} of 6'")
        tab.run("location.hash = 'q=is%3Asse'")
        tab.until("the stream", f"{FIGURES} === '1 of 6'")
        tab.key("g")
        tab.key("Enter")
        tab.until("the messages", "document.querySelector('[data-tab=frames] .count')?.textContent === '5'")
        tab.key("4")
        tab.until("five", "document.querySelectorAll('.frame').length === 5 && document.querySelector('.frame-kind').textContent === 'tick'")
        tab.run("location.hash = 'q=type%3Apng'")
        tab.until("the image's row", f"{FIGURES} === '1 of 6'")
        tab.key("g")
        tab.key("Enter")
        tab.key("3")
        tab.until("the offer", "document.querySelector('.image button')")
        tab.run("document.querySelector('.image button').click()")
        tab.until("the image", "document.querySelector('.image img')?.naturalWidth === 48")
        self.clean(tab)
        tab.close()

    def nothing_that_visitors_send_runs(self):
        tab = self.browser.page(self.inspector + "/")
        for text in HOSTILE:
            plain = text.encode("ascii", "ignore").decode()
            self.visit("POST", f"/page?q={urllib.parse.quote(text)}&{plain.replace(' ', '+').replace('#', '')}", text.encode(), {"X-Evil": plain, "X-Echo": plain, "Content-Type": "text/html", "User-Agent": plain})
        total = self.ask("requests")["total"]
        check(total >= 6 + len(HOSTILE), total)
        tab.until("all", f"{FIGURES} === '{total} requests'")
        tab.run("document.querySelector('.grid').focus()")
        tab.key("g")
        tab.key("Enter")
        for at in range(len(HOSTILE)):
            tab.until("the detail", "document.querySelector('.tab').childElementCount > 0 && !document.querySelector('.tab.waiting')")
            for name in ["request", "response", "replay", "overview"]:
                tab.run(f"document.querySelector('[data-tab={name}]').click()")
                tab.until(name, f"{TAB} === '{name}' && document.querySelector('.tab-{name}').childElementCount > 0")
            tab.key("j")
        tab.run("new Promise((resolve) => setTimeout(resolve, 300))")
        made_up = tab.run("[...document.querySelectorAll('script, iframe, object, embed, base, meta[http-equiv], form[action], img, video, math')].map((element) => element.outerHTML)")
        check(len(made_up) == 2, made_up)
        self.clean(tab)
        tab.close()

    def another_site_changes_nothing(self):
        site = serve(EvilSite)
        newest = self.ask("requests?limit=1")["requests"][0]
        before = len(LocalServer.asked)
        tab = self.browser.page(f"http://localhost:{site}/")
        tab.until("the site", "document.title === 'Another site'")
        replay = f"{self.inspector}/api/v1/requests/{newest['id']}/replay"
        for kind in ["text/plain", "application/x-www-form-urlencoded"]:
            tab.run(f"fetch({json.dumps(replay)}, {{ method: 'POST', mode: 'no-cors', headers: {{ 'Content-Type': '{kind}' }}, body: '{{}}' }}).then(() => 1, () => 0)")
        check(tab.run(f"fetch({json.dumps(replay)}, {{ method: 'POST', headers: {{ 'Content-Type': 'application/json' }}, body: '{{}}' }}).then(() => 'let in', () => 'refused')") == "refused")
        check(tab.run(f"fetch({json.dumps(self.inspector + '/api/v1/requests')}).then((answer) => answer.text()).then(() => 'read', () => 'refused')") == "refused")
        check(tab.run(f"fetch({json.dumps(self.inspector + '/api/v1/requests')}, {{ method: 'DELETE' }}).then(() => 'let in', () => 'refused')") == "refused")
        tab.run("new Promise((resolve) => setTimeout(resolve, 200))")
        statuses = [event["response"]["status"] for event in tab.mine("Network.responseReceived") if event["response"]["url"] == replay]
        check(403 in statuses and all(status >= 400 for status in statuses), statuses)
        check(len(LocalServer.asked) == before and self.ask("requests?limit=1")["requests"][0]["id"] == newest["id"])
        tab.close()

    def it_looks_right(self):
        for dark in [False, True]:
            tab = self.browser.page(self.inspector + "/#q=path%3A%2Fhook", dark=dark)
            tab.until("rows", f"{ROWS} > 0")
            tab.run("document.querySelector('.grid').focus()")
            tab.key("g")
            tab.key("Enter")
            tab.until("one", "document.querySelector('.facts')")
            check(tab.run(CONTRAST) == [], tab.run(CONTRAST))
            tab.shot(self.shots / f"real-{'dark' if dark else 'light'}.png")
            tab.close()


def main():
    print(f"listening {serve(LocalServer)}", flush=True)
    inspector, edge, host = sys.stdin.readline().split()
    cases = Cases(sys.argv[1], inspector, edge, host)
    failed = False
    try:
        for name in ["a_request_shows_up_and_is_replayed", "the_search_finds_what_the_agent_finds", "nothing_that_visitors_send_runs", "another_site_changes_nothing", "it_looks_right"]:
            began = time.monotonic()
            try:
                getattr(cases, name)()
                print(f"ok {name} {time.monotonic() - began:.1f} s", flush=True)
            except Exception:
                failed = True
                print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
    finally:
        cases.browser.close()
    sys.exit(failed)


if __name__ == "__main__":
    main()
