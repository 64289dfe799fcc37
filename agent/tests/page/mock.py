"""The agent's local API with made-up requests, for looking at the page and for its tests.

Run alone it serves them at http://127.0.0.1:4041 until it is stopped:
    python3 mock.py [--requests 10000] [--port 4041] [--rate 2] [--tunnels 3]
"""

import argparse
import base64
import contextlib
import hashlib
import json
import random
import re
import struct
import threading
import time
import urllib.parse
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from socket import SHUT_RDWR

PAGE = Path(__file__).resolve().parents[2] / "src/local/page"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Must not run, load or leave anything, wherever they stand.
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"><svg onload=alert(3)>",
    "javascript:alert(4)",
    "<iframe src=\"https://evil.test/5\"></iframe>",
    "<a href=\"javascript:alert(6)\">x</a>",
    "</script><script>alert(7)</script>",
    "'\"><img src=https://evil.test/8.png>",
    "<style>@import 'https://evil.test/9.css';</style>",
    "<link rel=stylesheet href=https://evil.test/10.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.test/11'>",
    "<object data=https://evil.test/12></object>",
    "<form action=https://evil.test/13><button autofocus onfocus=alert(13)></form>",
    "<details open ontoggle=alert(14)>",
    "<video><source onerror=alert(15)></video>",
    "{{constructor.constructor('alert(16)')()}}",
    "${alert(17)}",
    "data:text/html,<script>alert(18)</script>",
    "<base href=https://evil.test/19/>",
    "\u202egnp.\u202c<math><mtext><img src=x onerror=alert(20)>",
]


def png(side=48):
    """A picture of two colours."""
    rows = b"".join(
        b"\0" + b"".join(struct.pack("BBB", 47 + 3 * x, 91 + 2 * y, 208) for x in range(side)) for y in range(side)
    )

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def body(data, kept=None, encoding="", secret=None):
    """A body as the detail tells it, and its bytes."""
    kept = len(data) if kept is None else kept
    try:
        text = data.decode()
        is_text = "\0" not in text
    except UnicodeDecodeError:
        text, is_text = "", False
    told = {"size": len(data), "kept": kept, "where": "memory", "encoding": encoding, "text": is_text, "cut": kept < len(data), "preview_cut": kept > 65536 or kept < len(data)}
    if is_text:
        preview = text[:65536]
        told["text_preview"] = preview.replace(secret, "***") if secret else preview
    return told, data


class Maker:
    """Requests of all kinds, the same ones for the same seed."""

    def __init__(self, tunnels, seed=7):
        self.random = random.Random(seed)
        self.tunnels = tunnels
        self.seq = 0
        self.picture = png()
        # As much of a long one as is kept.
        self.table = ("id,name,amount\n" + "".join(f"{n},customer {n},{n * 3}\n" for n in range(4000))).encode()[:65536]

    def make(self, began_ms, state=None):
        self.seq += 1
        kinds = ["json"] * 9 + ["html"] * 4 + ["post", "post", "form", "image", "binary", "asset", "asset", "missing", "moved", "crash", "refused", "ws", "sse", "grpc", "huge", "slow"]
        kind = "json" if self.seq == 1 else self.random.choice(kinds)
        return getattr(self, f"make_{kind}")(self.base(began_ms, state))

    def base(self, began_ms, state):
        tunnel = self.random.choice(self.tunnels)
        request_id = hashlib.sha256(f"{self.seq}".encode()).hexdigest()[:32]
        host = urllib.parse.urlsplit(tunnel["url"]).netloc or "demo.example.com"
        request = [
            ["host", host],
            ["user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:134.0) Gecko/20100101 Firefox/134.0"],
            ["accept", "application/json, text/plain, */*"],
            ["accept-language", "en-GB,en;q=0.8,de;q=0.5"],
            ["authorization", "***"],
            ["cookie", "theme=***; sid=***"],
            ["x-forwarded-for", "203.0.113.7"],
            ["x-uniroute-request-id", request_id],
        ]
        wait = self.random.randint(900, 60_000)
        return {
            "seq": self.seq, "rev": 3, "id": request_id, "tunnel": tunnel["key"], "method": "GET", "scheme": "https", "host": host,
            "path": "/", "visitor": f"203.0.113.{self.random.randint(1, 250)}:{self.random.randint(20000, 60000)}",
            "started_ms": began_ms, "state": state or "done", "status": 200, "kind": "http", "type": "application/json",
            "request_size": 0, "response_size": 0, "wait_us": wait, "duration_us": wait + self.random.randint(100, 4000), "error": None,
            "replay_of": None, "upstream": tunnel["upstreams"][0]["url"],
            "http_version": "HTTP/1.1", "route": 0,
            "timing": {"connect_us": self.random.choice([0, 210]), "reused": True, "send_us": self.random.randint(20, 90), "wait_us": wait, "receive_us": self.random.randint(90, 4000), "edge_us": self.random.randint(20, 90), "link_us": self.random.randint(200, 900)},
            "request": {"headers": request, "trailers": [], "body": body(b"")},
            "response": {"status": 200, "reason": "OK", "headers": [["date", "Thu, 26 Nov 2026 02:00:00 GMT"], ["server", "uvicorn"], ["vary", "accept-encoding"]], "trailers": [], "informational": [], "body": body(b"")},
            "frames": 0, "messages": [],
        }

    def answer(self, made, data, kind, status=200, reason="OK", **more):
        made["status"] = made["response"]["status"] = status
        made["response"]["reason"] = reason
        made["type"] = kind.split(";")[0]
        made["response"]["headers"][1:1] = [["content-type", kind], ["content-length", str(len(data))]]
        made["response"]["body"] = body(data, **more)
        made["response_size"] = len(data)
        return made

    def give(self, made, method, data, kind, **more):
        made["method"] = method
        made["request"]["headers"] += [["content-type", kind], ["content-length", str(len(data))]]
        made["request"]["body"] = body(data, **more)
        made["request_size"] = len(data)

    def make_json(self, made):
        number = self.random.randint(1, 900)
        made["path"] = self.random.choice([f"/api/orders/{number}", "/api/orders?page=2&limit=50", f"/api/customers/{number}/invoices", "/api/session?token=***", "/api/health"])
        items = [{"sku": f"A-{n}", "count": n + 1, "price": 19.5 + n, "tags": ["new", "sale"], "stock": None if n % 3 == 0 else {"berlin": n, "oslo": 4 * n}} for n in range(6)]
        data = {"id": number, "big": 12345678901234567890, "paid": number % 2 == 0, "customer": {"name": "Zoë Müller", "mail": "zoe@example.com"}, "items": items, "note": "Leave it at the door,\nplease."}
        return self.answer(made, json.dumps(data, ensure_ascii=False).replace("1.2345678901234567e+19", "12345678901234567890").encode(), "application/json; charset=utf-8")

    def make_html(self, made):
        made["path"] = self.random.choice(["/", "/pricing", "/blog/2026/why-tunnels", "/login"])
        page = "<!doctype html>\n<html>\n<head><title>Shop</title></head>\n<body>\n" + "  <p>Words and more words in a paragraph.</p>\n" * 40 + "</body>\n</html>\n"
        return self.answer(made, page.encode(), "text/html; charset=utf-8")

    def make_post(self, made):
        made["path"] = self.random.choice(["/webhooks/payments", "/api/orders", "/api/graphql"])
        event = {"id": f"evt_{self.seq}", "type": "invoice.paid", "data": {"object": {"amount": 4200, "currency": "eur", "customer": "cus_9s6XKz"}}, "signature": "s3cr3t-of-the-hook", "livemode": False}
        self.give(made, "POST", json.dumps(event).encode(), "application/json", secret="s3cr3t-of-the-hook")
        return self.answer(made, b'{"received":true}', "application/json", 201, "Created")

    def make_form(self, made):
        made["path"] = "/login"
        self.give(made, "POST", b"name=zoe&password=correct+horse&remember=on&next=%2Faccount%3Ftab%3D1", "application/x-www-form-urlencoded", secret="correct+horse")
        made["response"]["headers"].append(["location", "/account?tab=1"])
        return self.answer(made, b"", "text/html", 303, "See Other")

    def make_image(self, made):
        made["path"] = f"/media/product-{self.random.randint(1, 90)}.png"
        return self.answer(made, self.picture, "image/png")

    def make_binary(self, made):
        made["path"] = "/downloads/firmware-2.4.1.bin"
        return self.answer(made, bytes(range(256)) * 12, "application/octet-stream")

    def make_asset(self, made):
        made["path"] = self.random.choice(["/assets/app-4f1c9a.js", "/assets/theme.css"])
        script = made["path"].endswith("js")
        return self.answer(made, ("export const a = () => 1;\n" * 300 if script else "body { margin: 0 }\n" * 200).encode(), "text/javascript" if script else "text/css", encoding="gzip")

    def make_missing(self, made):
        made["path"] = self.random.choice(["/favicon.ico", "/wp-login.php", "/.env"])
        return self.answer(made, b"Not Found", "text/plain", 404, "Not Found")

    def make_moved(self, made):
        made["path"] = "/docs"
        return self.answer(made, b"", "", 304, "Not Modified")

    def make_crash(self, made):
        made["path"] = "/api/reports/monthly"
        return self.answer(made, b'{"error":"division by zero","trace":["report.py:41","app.py:12"]}', "application/json", 500, "Internal Server Error")

    def make_refused(self, made):
        made.update(path="/api/cart", state="failed", status=502, type="", response=None, wait_us=None, error="UR-3001 nothing listens on http://localhost:3000")
        return made

    def make_slow(self, made):
        made["path"] = "/api/search?q=blue+shoes&sort=price"
        made["timing"].update(wait_us=2_400_000, held_us=310_000, connect_us=1800, reused=False, receive_us=88_000)
        made.update(wait_us=2_711_000, duration_us=2_800_400)
        return self.answer(made, b'{"results":[]}', "application/json")

    def make_huge(self, made):
        made["path"] = "/export/all.csv"
        self.answer(made, self.table, "text/csv")
        made["response"]["body"][0].update(size=1_254_000_000, cut=True, preview_cut=True)
        made["response_size"] = 1_254_000_000
        return made

    def stream(self, made, kind, frames):
        made.update(kind=kind, frames=len(frames), duration_us=frames[-1]["at_us"] + 5000)
        made["messages"] = [{"n": n + 1, "cut": False, "size": len(frame.get("text", "")) or 96, **frame} for n, frame in enumerate(frames)]
        return made

    def make_ws(self, made):
        made["path"] = "/socket"
        frames = []
        for n in range(30):
            frames.append({"at_us": 40_000 * n + 900, "from": "visitor", "kind": "text", "text": json.dumps({"op": "subscribe", "room": n, "user": "zoe"})})
            frames.append({"at_us": 40_000 * n + 9900, "from": "upstream", "kind": "text", "text": json.dumps({"op": "joined", "room": n, "members": list(range(n))})})
        frames.append({"at_us": 1_300_000, "from": "upstream", "kind": "binary", "base64": base64.b64encode(bytes(range(96))).decode()})
        frames.append({"at_us": 1_310_000, "from": "visitor", "kind": "ping", "text": ""})
        frames.append({"at_us": 1_320_000, "from": "visitor", "kind": "close", "text": "1000 done"})
        self.answer(made, b"", "", 101, "Switching Protocols")
        return self.stream(made, "websocket", frames)

    def make_sse(self, made):
        made["path"] = "/api/notifications/stream"
        frames = [{"at_us": 250_000 * n, "from": "upstream", "kind": "event", "event": "notice", "id": str(n), "text": json.dumps({"unread": n})} for n in range(24)]
        self.answer(made, b"", "text/event-stream")
        return self.stream(made, "sse", frames)

    def make_grpc(self, made):
        made.update(path="/shop.v1.Orders/Watch", method="POST", http_version="HTTP/2", grpc={"status": 0, "message": ""})
        frames = [{"at_us": 900 + 3000 * n, "from": "visitor" if n == 0 else "upstream", "kind": "message", "base64": base64.b64encode(bytes([10, 5]) + b"order" + bytes([16, n])).decode(), "compressed": False} for n in range(8)]
        self.answer(made, b"", "application/grpc")
        made["response"]["trailers"] = [["grpc-status", "0"]]
        return self.stream(made, "grpc", frames)

    def make_hostile(self, number, began_ms):
        """All that a visitor and a local server can say, said by somebody who means harm."""
        self.seq += 1
        text = HOSTILE[number]
        made = self.base(began_ms, None)
        made.update(path=f"/{text}?q={text}", visitor=text, method="POST", host=text, http_version=text, tunnel=made["tunnel"])
        made["request"]["headers"] += [["x-evil", text], [text[:60], "name"], ["referer", f"javascript:alert({number})"]]
        self.give(made, "POST", json.dumps({text: text, "__proto__": {"polluted": text}}).encode(), "application/json")
        self.answer(made, f"<!doctype html><body>{text}</body>".encode(), "text/html")
        made["response"]["reason"] = text
        made["response"]["headers"] += [["content-disposition", f"attachment; filename=\"{text}\""], ["refresh", "0;url=https://evil.test/"]]
        made["error"] = f"UR-3005 {text}"
        frames = [{"at_us": 5, "from": "visitor", "kind": "text", "text": text}, {"at_us": 9, "from": "upstream", "kind": "event", "event": text, "id": text, "text": json.dumps({"a": text})}]
        return self.stream(made, "websocket", frames)


def matches(made, words):
    for word in words:
        no = len(word) > 1 and word.startswith("-")
        field, colon, value = word.lstrip("-" if no else "").partition(":")
        if colon and field in ("method", "status", "path", "tunnel", "type", "slow", "is"):
            status = str(made["status"] or "")
            held = {
                "method": lambda: made["method"].lower() == value,
                "status": lambda: status[:1] == value[0] if re.fullmatch("[1-5]xx", value) else status == value,
                "path": lambda: value in made["path"].lower(),
                "tunnel": lambda: made["tunnel"].lower() == value,
                "type": lambda: value in made["type"],
                "slow": lambda: (made["duration_us"] or 0) >= int(value or 0) * 1000,
                "is": lambda: made["replay_of"] is not None if value == "replay" else (made["state"] == "failed" or (made["status"] or 0) >= 500) if value == "error" else made["kind"] == value,
            }[field]()
        else:
            held = word[1 if no else 0:] in made["hay"]
        if held == no:
            return False
    return True


class Server(ThreadingHTTPServer):
    """Knows its connections, and says nothing of those that browsers drop."""

    daemon_threads = True

    def __init__(self, *arguments):
        self.sockets = set()
        super().__init__(*arguments)

    def process_request(self, request, client_address):
        self.sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        pass


class Mock:
    """The API on a port of its own."""

    def __init__(self, requests=10_000, port=0, tunnels=1, hostile=False, upstream_down=False):
        self.started_ms = int(time.time() * 1000)
        self.tunnels = [self.tunnel(n, upstream_down and n == 0) for n in range(tunnels)]
        if hostile:
            for tunnel, text in zip(self.tunnels, HOSTILE, strict=False):
                tunnel.update(key=text, name=text, url=f"javascript:alert('{text}')", reason=text, state="refused")
                tunnel["upstreams"][0].update(url=text, reason=text, healthy=False)
        self.maker = Maker(self.tunnels)
        self.requests = []
        self.recording = True
        self.replays = []
        self.listeners = []
        self.evicted = 0
        self.lock = threading.Lock()
        now = time.time() * 1000
        for n in range(requests):
            self.keep(self.maker.make(now - (requests - n) * 700))
        if hostile:
            for n in range(len(HOSTILE)):
                self.keep(self.maker.make_hostile(n, now))
        self.server = None
        self.port = port
        self.start()

    @staticmethod
    def tunnel(n, down):
        name = ["demo", "api", "storybook", "hooks"][n % 4] + ("" if n < 4 else str(n))
        reason = "nothing listens on http://localhost:3000" if down else ""
        upstream = {"url": f"http://localhost:{3000 + n}", "healthy": not down, "reason": reason, "since_ms": 0, "history": []}
        return {"key": name, "kind": "http", "name": name, "url": f"https://{name}.tunnel.example.com", "state": "ready", "reason": "", "upstreams": [upstream], "requests": 10_482 // (n + 1), "failed": 12 // (n + 1), "open": 3 - n if n < 3 else 0}

    def start(self):
        handler = type("Handler", (Handler,), {"mock": self})
        self.server = Server(("127.0.0.1", self.port), handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        """Like an agent that was killed."""
        self.server.shutdown()
        self.server.server_close()
        for socket in list(self.server.sockets):
            with contextlib.suppress(OSError):
                socket.shutdown(SHUT_RDWR)
        for queue in self.listeners:
            queue.put(None)
        self.listeners = []

    def again(self):
        """Another agent, with nothing kept."""
        self.started_ms += 60_000
        self.requests = []
        self.start()

    def keep(self, made):
        made["hay"] = " ".join([made["method"], made["path"], made["host"], made["visitor"], str(made["status"]), json.dumps(made["request"]["headers"]), made["request"]["body"][0].get("text_preview", "")]).lower()
        self.requests.append(made)

    def add(self, made):
        """A request that comes in now."""
        with self.lock:
            self.keep(made)
        self.tell("request", summary(made))

    def change(self, made, **what):
        made.update(what)
        made["rev"] += 1
        self.tell("request", summary(made))

    def tell(self, event, data):
        for queue in list(self.listeners):
            queue.put((event, data))

    def status(self):
        return {
            "agent_id": "b4c1f0a2", "version": "0.5.0", "started_ms": self.started_ms,
            "sessions": [{"edge": "edge-fra-1", "server": "https://tunnel.example.com", "carrier": "websocket", "since_ms": self.started_ms, "rtt_us": 18_400}, {"edge": "edge-ams-1", "server": "https://tunnel.example.com", "carrier": "quic", "since_ms": self.started_ms, "rtt_us": 21_900}],
            "trouble": "", "tunnels": self.tunnels,
            "inspector": {"captured": len(self.requests), "bytes": 48_200_000, "max_requests": 10_000, "max_bytes": 67_108_864, "evicted": self.evicted, "spool_bytes": 0, "recording": self.recording},
        }

    def find(self, request_id):
        return next((made for made in reversed(self.requests) if made["id"] == request_id), None)


INSIDE = ("http_version", "route", "timing", "request", "response", "grpc", "frames")


def summary(made):
    return {name: value for name, value in made.items() if name not in (*INSIDE, "hay", "messages")}


def detail(made):
    told = {name: value for name, value in made.items() if name not in ("hay", "messages")}
    for side in ("request", "response"):
        if told[side]:
            told[side] = {**told[side], "body": told[side]["body"][0]}
    return told


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mock: Mock

    def log_message(self, *_):
        pass

    def send(self, data, kind="application/json", status=200, headers=()):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in [("Content-Type", kind), ("Content-Length", str(len(data))), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def problem(self, status, title, told):
        self.send({"title": title, "status": status, "detail": told}, "application/problem+json", status)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if not url.path.startswith("/api/v1/"):
            return self.file(url.path)
        parts = url.path.removeprefix("/api/v1/").split("/")
        if parts == ["status"]:
            return self.send(self.mock.status())
        if parts == ["requests"]:
            return self.list(query)
        if parts == ["events"]:
            return self.events()
        if parts == ["har"]:
            return self.send({"log": {"version": "1.2", "entries": []}}, headers=[("Content-Disposition", "attachment")])
        if parts == ["diff"]:
            return self.diff(query)
        made = self.mock.find(parts[1]) if parts[0] == "requests" and len(parts) > 1 else None
        if not made:
            return self.problem(404, "No such request", "It is not kept any more.")
        if len(parts) == 2:
            return self.send(detail(made))
        if parts[2] == "curl":
            return self.send(f"curl -X {made['method']} 'https://{made['host']}{made['path']}'".encode(), "text/plain")
        if parts[2] == "frames":
            after = int(query.get("after", 0))
            return self.send({"frames": [frame for frame in made["messages"] if frame["n"] > after][:500], "dropped": 0})
        data = made[parts[2]]["body"][1]
        kept = made[parts[2]]["body"][0]["kept"]
        return self.send(data[: min(kept, 1 << 20)], "application/octet-stream", headers=[("Content-Disposition", "attachment"), ("Content-Security-Policy", "sandbox"), ("X-Uniroute-Body", "whole")])

    def file(self, path):
        name = "index.html" if path == "/" else path.removeprefix("/assets/")
        file = PAGE / name
        if "/" in name or file.suffix not in TYPES or not file.is_file():
            return self.send(b"", "text/plain", 404)
        return self.send(file.read_bytes(), TYPES[file.suffix], headers=[("Content-Security-Policy", CSP), ("Referrer-Policy", "no-referrer")])

    def list(self, query):
        limit = min(int(query.get("limit", 200)), 1000)
        before = int(query.get("before", 1 << 60))
        after = int(query.get("after", 0))
        words = query.get("q", "").lower().split()
        with self.mock.lock:
            kept = self.mock.requests
            latest = kept[-1]["seq"] if kept else 0
            found = [made for made in kept if made["seq"] > after and matches(made, words)] if words or after else kept
            page = []
            for made in reversed(found):
                if made["seq"] < before:
                    page.append(made)
                    if len(page) > limit:
                        break
            more = len(page) > limit
            page = page[:limit]
        self.send({"requests": [summary(made) for made in page], "next": page[-1]["seq"] if more else None, "total": len(found), "latest": latest})

    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        queue = Queue()
        self.mock.listeners.append(queue)
        self.close_connection = True
        try:
            self.wfile.write(b": here\n\n")
            while True:
                try:
                    told = queue.get(timeout=5)
                except Empty:
                    self.wfile.write(b": still here\n\n")
                    continue
                if told is None:
                    return
                event, data = told
                self.wfile.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())
        except OSError:
            pass
        finally:
            if queue in self.mock.listeners:
                self.mock.listeners.remove(queue)

    def diff(self, query):
        a, b = self.mock.find(query["a"]), self.mock.find(query["b"])
        if not a or not b:
            return self.problem(404, "No such request", "One of the two is not kept any more.")
        equal = [f'  "line": {n},' for n in range(40)]
        hunks = [
            {"tag": "equal", "lines": ["{", '  "id": 7,']}, {"tag": "delete", "lines": ['  "paid": false,']}, {"tag": "insert", "lines": ['  "paid": true,', '  "paid_at": "2026-11-26",']},
            {"tag": "equal", "lines": equal}, {"tag": "delete", "lines": [f'  "note": {json.dumps(a["path"])}']}, {"tag": "insert", "lines": [f'  "note": {json.dumps(b["path"])}']}, {"tag": "equal", "lines": ["}"]},
        ]
        headers = [{"name": "date", "a": "Thu, 26 Nov 2026 02:00:00 GMT", "b": "Thu, 26 Nov 2026 02:07:41 GMT"}, {"name": "x-cache", "a": "hit"}, {"name": "etag", "b": 'W/"1f-9"'}]
        self.send({"status": [a["status"], b["status"]], "headers": headers, "body": {"same": False, "hunks": hunks}})

    def allowed(self):
        origin = self.headers.get("Origin")
        plain = self.headers.get("X-Uniroute") != "1" and self.headers.get("Content-Type") != "application/json"
        if plain or origin not in (None, f"http://{self.headers.get('Host')}"):
            self.problem(403, "Not from here", "Another site's page asked for this.")
            return False
        return True

    def do_POST(self):
        if not self.allowed():
            return None
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        parts = self.path.removeprefix("/api/v1/").split("/")
        if parts == ["recording"]:
            self.mock.recording = sent["on"]
            self.mock.tell("status", self.mock.status())
            return self.send({"on": sent["on"]})
        made = self.mock.find(parts[1])
        if not made:
            return self.problem(404, "No such request", "It is not kept any more.")
        if made["request"]["body"][0]["kept"] < made["request"]["body"][0]["size"]:
            return self.problem(409, "Only the beginning of this body is kept", "Set spool = true in [agent.inspector], and have the request made again.")
        self.mock.replays.append((made["id"], sent))
        again = json.loads(json.dumps({name: value for name, value in made.items() if name not in ("request", "response")}))
        again.update(request=made["request"], response=made["response"])
        self.mock.maker.seq += 1
        again.update(seq=self.mock.maker.seq, id=hashlib.sha256(f"replay {self.mock.maker.seq}".encode()).hexdigest()[:32], replay_of=made["id"], started_ms=time.time() * 1000, rev=1)
        again.update({name: sent[name] for name in ("method", "path", "upstream") if name in sent})
        self.mock.add(again)
        return self.send({"id": again["id"]})

    def do_DELETE(self):
        if not self.allowed():
            return
        with self.mock.lock:
            self.mock.requests = []
        self.mock.tell("reset", {})
        self.send({})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--port", type=int, default=4041)
    parser.add_argument("--rate", type=float, default=2, help="new requests a second")
    parser.add_argument("--tunnels", type=int, default=1)
    parser.add_argument("--hostile", action="store_true")
    chosen = parser.parse_args()
    mock = Mock(chosen.requests, chosen.port, chosen.tunnels, chosen.hostile)
    print(f"listening {mock.url}", flush=True)
    while True:
        time.sleep(1 / chosen.rate)
        mock.add(mock.maker.make(time.time() * 1000))


if __name__ == "__main__":
    main()
