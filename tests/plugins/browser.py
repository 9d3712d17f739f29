"""Chromium without a head, driven through a pipe by its own protocol (Chrome DevTools Protocol): no driver and no package needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " "), "ArrowDown": (40, "")}


class LeftError(AssertionError):
    """The page was left while it was asked."""


class Browser:
    """One tab. `said`: everything the console and the page's errors said; `asked`: every address that was requested."""

    def __init__(self, profile: Path) -> None:
        mine, theirs = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        shell = f'exec "$0" "$@" 3<&{mine[0]} 4>&{theirs[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, str(CHROMIUM), *flags, "about:blank"],
            pass_fds=(mine[0], theirs[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(mine[0])
        os.close(theirs[1])
        self._out, self._in, self._rest, self._number = mine[1], theirs[0], b"", 0
        self._session: str | None = None
        self.said: list[str] = []
        self.asked: list[str] = []
        target = next(t for t in self._ask("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        self._ask("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def close(self) -> None:
        """Ends it."""
        self._session = None
        self._send("Browser.close", {})
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _send(self, method: str, given: dict[str, Any]) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        os.write(self._out, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        return self._number

    def _ask(self, method: str, **given: Any) -> dict[str, Any]:
        number = self._send(method, given)
        while True:
            message = self._read(20)
            if message.get("id") == number:
                if "navigated" in message.get("error", {}).get("message", ""):
                    raise LeftError(str(given))
                assert "error" not in message, (method, message)
                return message["result"]

    def _read(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], max(end - time.monotonic(), 0))[0], "the browser does not answer"
            found = os.read(self._in, 1 << 20)
            assert found, "the browser is gone"
            self._rest += found
        one, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(one)
        given = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(given["exceptionDetails"]))
        if message.get("method") == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.said.append(str(given["args"]))
        if message.get("method") == "Log.entryAdded":
            self.said.append(given["entry"]["text"])
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(given["request"]["url"])
        return message

    def open(self, address: str) -> None:
        """Goes to a page and waits until it is there."""
        self._ask("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def do(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Waits until an expression is true, over a page's end if it must."""
        for _ in range(100):
            with suppress(LeftError):
                if self.do(script):
                    return
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def key(self, name: str) -> None:
        """Presses a key."""
        code, text = KEYS[name]
        about = {"key": name, "windowsVirtualKeyCode": code, "code": {" ": "Space"}.get(name, name)}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self._ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """The window's size, as a phone has it below 500, and what the system prefers."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """A screenshot of what is seen."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self._ask("Page.printToPDF")["data"])
