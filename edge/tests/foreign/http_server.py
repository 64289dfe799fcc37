"""A local server that curl visits through a tunnel: Python's `http.server`, with HTTP/1.1.

    http_server.py

Says `listening PORT` and serves until it is killed.
"""
import hashlib, http.server, json, threading

MIB = 1 << 20
# What /data is.
DATA = b"".join(hashlib.sha256(b"%d" % block).digest() for block in range(4 * MIB // 32))
CHUNK = b"%x\r\n%s\r\n"


class News:
    """Events of /events, said by POST /say."""

    def __init__(self):
        self.lines, self.changed = [], threading.Condition()

    def say(self, line):
        with self.changed:
            self.lines.append(line)
            self.changed.notify_all()

    def after(self, number):
        with self.changed:
            self.changed.wait_for(lambda: len(self.lines) > number)
            return self.lines[number]


news = News()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def chunked(self):
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")

    def body(self):
        """Pieces of the request's body, whatever its framing."""
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            left = int(self.headers.get("content-length", 0))
            while left:
                piece = self.rfile.read(min(left, MIB))
                left -= len(piece)
                yield piece
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def handle_expect_100(self):
        if self.path.startswith("/refuse/"):
            return True
        return super().handle_expect_100()

    def do_GET(self):
        path, _, rest = self.path.partition("?")
        if path == "/hello":
            self.answer(200, b"hello\n", content_type="text/plain")
        elif path == "/data":
            self.data()
        elif path == "/nothing":
            self.answer(204)
        elif path == "/moved":
            self.answer(302, location="/hello")
        elif path == "/events":
            self.events()
        elif path == "/trailers":
            self.chunked()
            self.send_header("trailer", "x-checksum")
            self.end_headers()
            self.wfile.write(CHUNK % (5, b"hello") + b"0\r\nx-checksum: of-hello\r\n\r\n")
        elif path == "/endless":
            # The end of the body is the end of the connection.
            self.send_response(200)
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(DATA)
        elif path == "/cut":
            self.send_response(200)
            self.send_header("content-length", str(len(DATA)))
            self.send_header("etag", '"data"')
            self.end_headers()
            self.wfile.write(DATA[: len(DATA) // 2])
            self.close_connection = True
        else:
            self.answer(404)

    do_HEAD = do_GET

    def data(self):
        """All of it, or the one range that is asked for."""
        wanted = self.headers.get("range")
        fields = {"accept_ranges": "bytes", "etag": '"data"'}
        if wanted is None:
            return self.answer(200, DATA, **fields)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if first == "":
            first, last = len(DATA) - int(last), len(DATA) - 1
        first, last = int(first), min(int(last or len(DATA)), len(DATA) - 1)
        if first >= len(DATA):
            return self.answer(416, content_range=f"bytes */{len(DATA)}")
        fields["content_range"] = f"bytes {first}-{last}/{len(DATA)}"
        self.answer(206, DATA[first : last + 1], **fields)

    def events(self):
        self.chunked()
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        number, text = 0, "ready"
        while True:
            event = f"data: {text}\n\n".encode()
            self.wfile.write(CHUNK % (len(event), event))
            self.wfile.flush()
            text = news.after(number)
            number += 1

    def do_POST(self):
        if self.path.startswith("/refuse/"):
            # At once: none of the body is read.
            self.close_connection = True
            return self.answer(int(self.path.rpartition("/")[2]), b"no\n", connection="close")
        digest, length = hashlib.sha256(), 0
        for piece in self.body():
            digest.update(piece)
            length += len(piece)
        if self.path.startswith("/say/"):
            news.say(self.path.rpartition("/")[2])
        said = {"length": length, "sha256": digest.hexdigest(), "expect": self.headers.get("expect")}
        said["framing"] = self.headers.get("transfer-encoding") or self.headers.get("content-length")
        self.answer(200, json.dumps(said).encode())

    do_PUT = do_POST


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        """Visitors that break off are no news."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(f"listening {server.server_address[1]}", flush=True)
    server.serve_forever()
