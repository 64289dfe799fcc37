"""A Chromium that is told what to do over its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

# Nothing takes longer, in seconds.
BOUND = 20

# What a key's press is made of, where it is no letter.
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowDown": (40, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowLeft": (37, ""), "PageDown": (34, ""), "End": (35, ""), "Home": (36, "")}


class Failed(Exception):
    """Something that had to be is not."""


class Browser:
    """A browser of its own, with nothing kept from another."""

    def __init__(self):
        program = shutil.which("chromium")
        if not program:
            raise Failed("chromium is missing: run scripts/install-test-deps.sh")
        self.home = tempfile.mkdtemp(prefix="page-")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb"]
        environment = {"HOME": self.home, "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": self.home}
        self.process = subprocess.Popen([program, *flags, f"--user-data-dir={self.home}", "--remote-debugging-port=0", "about:blank"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
        self.port_file = Path(self.home, "DevToolsActivePort")
        until = time.monotonic() + BOUND
        while not (self.port_file.exists() and self.port_file.read_text().count("\n")):
            if time.monotonic() > until or self.process.poll() is not None:
                self.close()
                raise Failed("chromium did not start")
            time.sleep(0.02)
        self.port, path = self.port_file.read_text().split("\n")[:2]
        self.socket = connect(f"ws://127.0.0.1:{self.port}{path}", max_size=None, compression=None, ping_interval=None)
        self.calls = 0
        self.events = []

    def call(self, method, session=None, **parameters):
        self.calls += 1
        call = self.calls
        message = {"id": call, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=BOUND))
            if answer.get("id") == call:
                if "error" in answer:
                    raise Failed(f"{method}: {answer['error']}")
                return answer["result"]
            self.heard(answer)

    def heard(self, event):
        self.events.append(event)
        if event.get("method") == "Page.javascriptDialogOpening":
            # Noted, and out of the way.
            self.calls += 1
            self.socket.send(json.dumps({"id": self.calls, "method": "Page.handleJavaScriptDialog", "params": {"accept": False}, "sessionId": event["sessionId"]}))

    def page(self, url, **options):
        return Tab(self, url, **options)

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


class Tab:
    """A page in it, in a profile of its own."""

    def __init__(self, browser, url, width=1440, height=900, dark=False, mobile=False):
        self.browser = browser
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        self.target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context, width=width, height=height)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Network", "Log"]:
            self.call(f"{domain}.enable")
        self.shape(width, height, dark, mobile)
        self.first_event = len(browser.events)
        self.call("Page.navigate", url=url)

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def shape(self, width, height, dark=False, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def run(self, script):
        """What the expression gives; a promise is waited for."""
        given = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in given:
            raise Failed(f"{script}: {given['exceptionDetails'].get('exception', {}).get('description')}")
        return given["result"].get("value")

    def until(self, what, script):
        """Waits until the expression holds."""
        until = time.monotonic() + BOUND
        while True:
            if self.run(f"(() => {{ try {{ return Boolean({script}); }} catch {{ return false; }} }})()"):
                return
            if time.monotonic() > until:
                raise Failed(f"not within {BOUND} s: {what}\n{self.run('location.hash')} {self.run('document.body.innerText')[-900:]}\n{self.complaints()}")
            time.sleep(0.02)

    def key(self, key, modifiers=0):
        code, text = KEYS.get(key, (0, key if len(key) == 1 else ""))
        press = {"key": key, "windowsVirtualKeyCode": code or (ord(key.upper()) if len(key) == 1 else 0), "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **press, **({"text": text} if text and not modifiers & 2 else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **press)

    def type(self, text):
        for char in text:
            self.key(char)

    def click(self, selector):
        x, y = self.run(f"(() => {{ const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()")
        for kind in ["mousePressed", "mouseReleased"]:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def shot(self, file):
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)["data"])
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(data)

    def mine(self, method):
        return [event["params"] for event in self.browser.events[self.first_event :] if event.get("method") == method and event.get("sessionId") == self.session]

    def requests(self):
        """The addresses that the page asked for."""
        return [event["request"]["url"] for event in self.mine("Network.requestWillBeSent")]

    def complaints(self):
        """Scripts that failed, and what the browser refused."""
        thrown = [event["exceptionDetails"].get("exception", {}).get("description", "?") for event in self.mine("Runtime.exceptionThrown")]
        said = [event["entry"]["text"] for event in self.mine("Log.entryAdded") if event["entry"]["level"] == "error"]
        return thrown + said

    def close(self):
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)
