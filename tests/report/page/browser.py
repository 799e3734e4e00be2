"""A headless Chromium, asked through a pipe: what a page requests, says, holds and looks like."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LONGEST_ANSWER = 60.0  # seconds


def installed() -> str | None:
    """Where a Chromium is, None without one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page in one process. `events` has what the browser reported, in order."""

    def __init__(self, asks: int, answers: int) -> None:
        self.asks, self.answers = asks, answers
        self.events: list[dict[str, Any]] = []
        self._read, self._asked, self._session = b"", 0, None

    def attach(self) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self.asks, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + LONGEST_ANSWER
        while time.monotonic() < until:
            found = self._next()
            if found.get("id") == self._asked:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)
        raise TimeoutError(f"no answer to {method}")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            data = os.read(self.answers, 1 << 20)
            assert data, "the browser has ended"
            self._read += data
        text, self._read = self._read.split(b"\0", 1)
        found: dict[str, Any] = json.loads(text)
        return found

    def open(self, page: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a file and wait until its charts are drawn."""
        self.visit(page.absolute().as_uri(), width=width, height=height, dark=dark)
        self.until("document.documentElement?.dataset.ready === 'true'")

    def visit(self, address: str, *, width: int, height: int, dark: bool = False) -> None:
        """Go to an address, in a window of this size."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Page.navigate", url=address)

    def until(self, condition: str) -> None:
        """Wait until a condition in JavaScript holds."""
        end = time.monotonic() + LONGEST_ANSWER
        while not self.value(condition):
            assert time.monotonic() < end, f"{condition} does not hold; {self.complaints()}"
            time.sleep(0.1)

    def value(self, expression: str) -> Any:
        """What an expression in JavaScript gives, as JSON."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, out: Path, *, height: int | None = None) -> Path:
        """A PNG of the window, or of the page's first `height` pixels."""
        clip = {}
        if height is not None:
            width = self.value("document.documentElement.clientWidth")
            clip = {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=height is not None, **clip)[
            "data"
        ]
        out.write_bytes(base64.b64decode(data))
        return out

    def requests(self) -> list[str]:
        """Addresses that were asked for, but for data in the page itself."""
        asked = [event["params"]["request"]["url"] for event in self.events if event.get("method") == REQUEST]
        return [address for address in asked if not address.startswith(("data:", "blob:"))]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and exceptions that nobody caught."""
        found = []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
                found.append(str(parameters["args"]))
            elif event.get("method") == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(str(parameters["entry"]))
        return found


REQUEST = "Network.requestWillBeSent"


@contextmanager
def chromium(profile: Path, *, here: bool = False) -> Iterator[Browser]:
    """A browser that cannot reach any host: every name resolves to nothing, but 127.0.0.1 if `here`."""
    program = installed()
    assert program is not None
    asks_read, asks_write = os.pipe()
    answers_read, answers_write = os.pipe()
    ours = (asks_read, answers_write)

    def place() -> None:  # the protocol's pipes are 3 and 4
        read, write = os.dup(asks_read), os.dup(answers_write)
        os.dup2(read, 3, inheritable=True)
        os.dup2(write, 4, inheritable=True)

    rules = "MAP * ~NOTFOUND" + (", EXCLUDE 127.0.0.1" if here else "")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--hide-scrollbars"]
    flags += ["--disable-background-networking", f"--host-resolver-rules={rules}"]
    process = subprocess.Popen(
        [program, *flags, "about:blank"],
        preexec_fn=place,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in ours:
        os.close(end)
    try:
        browser = Browser(asks_write, answers_read)
        browser.attach()
        yield browser
    finally:
        process.terminate()
        process.wait(30)
        os.close(asks_write)
        os.close(answers_read)
