"""Chromium without a window, driven over two pipes in its DevTools protocol: pages are opened, clicked, typed into, seen."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowRight": (39, ""),
}
WAIT = 60.0  # seconds for anything that a page does
MIDDLE = """(() => {
  const node = document.querySelector(%s);
  node.scrollIntoView({ block: "center" });
  const box = node.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
  return node.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
})()"""


class Page:
    """One tab. `log`: what its console and its policies complained of; `urls`: what it requested."""

    def __init__(self, send: Callable[..., dict[str, Any]], session: str):
        self._send, self._session = send, session
        self.log: list[str] = []
        self.urls: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._send(method, self._session, self._note, **params)

    def _note(self, event: dict[str, Any]) -> None:
        params = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])
        elif event["method"] == "Log.entryAdded":
            self.log.append(params["entry"]["text"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.log.append(str(params["exceptionDetails"]))

    def size(self, width: int, height: int, dark: bool = False) -> None:
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **shape)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        self.until(lambda: self.value(f"Boolean({condition})"), condition)

    def until(self, true: Callable[[], bool], what: str = "a condition") -> None:
        """Until `true()`, while the page goes on."""
        end = time.monotonic() + WAIT
        while not true():
            assert time.monotonic() < end, f"not within {WAIT:g} seconds: {what}; log: {self.log}"
            self.value("new Promise((done) => setTimeout(done, 20))")

    def text(self, selector: str) -> str:
        return self.value(f"document.querySelector({json.dumps(selector)}).textContent")

    def click(self, selector: str) -> None:
        """A mouse click in the middle of an element, which nothing may cover."""
        place = self.value(MIDDLE % json.dumps(selector))
        assert place is not None, f"{selector} cannot be clicked"
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def write(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def press(self, *keys: str) -> None:
        for key in keys:
            code, text = KEYS[key]
            common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
            self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, file: Path) -> None:
        """The whole page, as far as it can be scrolled."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


class Browser:
    """A running Chromium. A command waits for its answer; events of its page go to `listen` meanwhile."""

    def __init__(self, profile: Path):
        (read_commands, commands), (answers, write_answers) = os.pipe(), os.pipe()
        start = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'  # the protocol's pipes have the numbers 3 and 4
        self._process = subprocess.Popen(
            ["bash", "-c", start, "bash", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(read_commands, write_answers), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_commands)
        os.close(write_answers)
        self._commands, self._answers = os.fdopen(commands, "wb", buffering=0), os.fdopen(answers, "rb")
        self._number, self._left = 0, b""

    def page(self) -> Page:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        return Page(self.send, self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])

    def send(
        self,
        method: str,
        session: str | None = None,
        listen: Callable[[dict[str, Any]], None] | None = None,
        **params: Any,
    ) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        self._commands.write(json.dumps({**command, "sessionId": session} if session else command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            if listen is not None and message.get("sessionId") == session:
                listen(message)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = self._answers.read1(65536)
            assert part, "the browser has ended"
            self._left += part
        line, _, self._left = self._left.partition(b"\0")
        return json.loads(line)

    def close(self) -> None:
        self.send("Browser.close")
        self._process.wait(20)
        self._commands.close()
        self._answers.close()


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    running = Browser(profile)
    try:
        yield running
    finally:
        running.close()
