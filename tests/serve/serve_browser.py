"""A real headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = {"Enter": (13, "\r"), "Escape": (27, "")}


class Page:
    """One tab; `complaints` holds exceptions of its scripts and what its policy refused."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.sent = socket, 0
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            told = message.get("params", {})
            if "exceptionDetails" in told or told.get("entry", {}).get("source", "network") != "network":
                self.complaints.append(json.dumps(told))
            if message.get("id") == self.sent:
                assert "error" not in message, message
                return message["result"]

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> Any:
        """Wait until an expression is true and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} never came true:\n{self.run('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def open(self, url: str, language: str = "en-GB", width: int = 1200, height: int = 800, dark: bool = False) -> None:
        """Open a page as a browser of that language, size and colour scheme, and wait for its scripts."""
        self.call("Emulation.setUserAgentOverride", userAgent="test", acceptLanguage=language)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def type(self, text: str) -> None:
        """Write text where the cursor is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key and let it go."""
        code, text = KEYS[key]
        stroke = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **stroke)
        self.call("Input.dispatchKeyEvent", type="keyUp", **stroke)

    def picture(self) -> bytes:
        """Return the visible part as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Run Chromium with an empty profile; without Chromium the test is skipped, in CI it fails."""
    if not CHROMIUM:
        if os.environ.get("CI"):
            pytest.fail("CI must have chromium", pytrace=False)
        pytest.skip("not installed: chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--no-proxy-server"]
    process = subprocess.Popen(
        [CHROMIUM, *flags, *quiet, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with connect(_tab(profile), max_size=None, proxy=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(20)


def _tab(profile: Path) -> str:
    """Return the address of the first tab's protocol, once the browser has one."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError, httpx.TransportError):
            port = int((profile / "DevToolsActivePort").read_text().split()[0])
            tabs = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
            if found := [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]:
                return str(found[0])
        time.sleep(0.1)
    raise AssertionError("Chromium opened no page in 60 s")
