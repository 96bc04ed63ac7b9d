"""A tab of headless Chromium, driven over a pipe (DevTools protocol)."""

import contextlib
import fcntl
import functools
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))),
    None,
)


FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu"),
    "--disable-dev-shm-usage",  # containers may have little of it
)


@functools.cache
def starts():
    """Whether Chromium is installed and can show an empty page."""
    if CHROMIUM is None:
        return False
    show = [CHROMIUM, *FLAGS, "--dump-dom", "about:blank"]
    try:
        found = subprocess.run(show, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return found.returncode == 0 and b"<html>" in found.stdout


class Tab:
    """A tab that shows a page.

    Arguments
    ---------
    send, receive : int
        Pipes to and from the browser.
    """

    def __init__(self, send, receive):
        self.pipes = send, receive
        self.buffer, self.count, self.session = b"", 0, None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")
        found = self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self.session = found["sessionId"]
        for domain in ("Page", "DOM", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Calls a method and waits for its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.pipes[0], json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self.count:
                assert "error" not in found, found["error"]
                return found["result"]
            self.events.append(found)

    def _message(self):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.pipes[1]], [], [], 60)
            assert ready, "Chromium does not answer"
            received = os.read(self.pipes[1], 65536)
            assert received, "Chromium has ended"
            self.buffer += received
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def evaluate(self, code):
        """The value of an expression of JavaScript."""
        found = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True
        )
        return found["result"].get("value")

    def wait(self, code, seconds=60):
        """Waits until an expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.evaluate(code):
                return value
            time.sleep(0.2)
        raise AssertionError(f"{code} is not true after {seconds} s")

    def click(self, selector, until):
        """Clicks until an expression is true, and returns its value.

        A click may come before the page listens.
        """
        for _ in range(12):
            self.evaluate(f"document.querySelector('{selector}').click()")
            with contextlib.suppress(AssertionError):
                return self.wait(until, seconds=5)
        raise AssertionError(f"{until} is not true after clicks on {selector}")

    def choose_file(self, selector, path):
        """Gives a file to an input, until the page has taken it away."""
        gone = f"!document.querySelector('{selector}')"
        for _ in range(12):
            root = self.call("DOM.getDocument")["root"]["nodeId"]
            node = self.call(
                "DOM.querySelector", nodeId=root, selector=selector
            )
            self.call(
                "DOM.setFileInputFiles", files=[path], nodeId=node["nodeId"]
            )
            with contextlib.suppress(AssertionError):
                return self.wait(gone, seconds=5)
        raise AssertionError(f"{selector} does not take {path}")

    def requested(self):
        """Addresses that the page asked for."""
        return {
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        }


@contextlib.contextmanager
def tab(folder):
    """Starts Chromium and opens a tab; its profile is in ``folder``."""
    down, up = os.pipe(), os.pipe()
    # bash moves the pipes to the numbers that Chromium knows, because code
    # between fork and exec may wait for a lock for ever
    reads, writes = (
        fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (down[0], up[1])
    )
    browser = subprocess.Popen(
        [
            *("bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash"),
            *(CHROMIUM, *FLAGS, "--remote-debugging-pipe"),
            *("--disable-background-networking", f"--user-data-dir={folder}"),
        ],
        pass_fds=(reads, writes),
        stderr=subprocess.DEVNULL,
    )
    for end in (down[0], up[1], reads, writes):
        os.close(end)
    try:
        yield Tab(down[1], up[0])
    finally:
        browser.terminate()
        browser.wait(30)
        os.close(down[1])
        os.close(up[0])
