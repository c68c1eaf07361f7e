"""Chromium and Firefox without a window, driven over the protocols that they bring with them.

Chromium speaks its DevTools protocol over two pipes, Firefox Marionette over a local connection;
neither needs a driver of its own.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

SECONDS_TO_START = 60


class Point(NamedTuple):
    """A place in the window, in CSS pixels."""

    x: float
    y: float


class Browser(Protocol):
    """What the tests need of a browser; it shows one page at a time."""

    def open(self, url: str) -> None:
        """Open a page and wait until it has loaded."""

    def run(self, script: str) -> Any:
        """Run the body of a function in the page and return what it returns, as JSON.

        It may call the page's functions; Firefox does not show it the page's constants.
        """

    def stroke(self, points: Sequence[Point], pointer: str = "mouse") -> None:
        """Put a mouse, a pen or a finger (touch) down, move along the points and lift it."""

    def key(self, name: str) -> None:
        """Press and release a key: a character, or a name such as ArrowLeft."""

    def show(self, width: int, height: int, scheme: str) -> None:
        """Set the window's size and the preferred colours, light or dark."""

    def screenshot(self) -> bytes:
        """Return what the window shows, as PNG."""

    def messages(self) -> list[str]:
        """Return all that the console has said since the start."""

    def requests(self) -> list[str]:
        """Return the addresses of all that pages have asked for since the start."""

    def close(self) -> None:
        """End the browser."""


def find(*names: str) -> str | None:
    """Return the path of the first program there is."""
    return next(filter(None, map(shutil.which, names)), None)


KEYS = {
    " ": (" ", " ", 32),
    "ArrowLeft": ("\ue012", "", 37),
    "ArrowUp": ("\ue013", "", 38),
    "ArrowRight": ("\ue014", "", 39),
    "ArrowDown": ("\ue015", "", 40),
    "Backspace": ("\ue003", "", 8),
    "Delete": ("\ue017", "", 46),
    "Tab": ("\ue004", "", 9),
}
"""For each key: WebDriver's code of it, the text it types and Chromium's number."""


class Chromium:
    """Chromium over --remote-debugging-pipe: JSON messages that end with a zero byte."""

    PROGRAM = find("chromium", "chromium-browser", "google-chrome")

    def __init__(self, folder: Path) -> None:
        read, browser_write = os.pipe()
        browser_read, write = os.pipe()
        assert self.PROGRAM
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            [
                "bash", "-c", f'exec "$0" "$@" 3<&{browser_read} 4>&{browser_write}', self.PROGRAM,
                *options, f"--user-data-dir={folder}",
            ],
            pass_fds=(browser_read, browser_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(browser_read)
        os.close(browser_write)
        self._read, self._write = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self._number, self._session = 0, ""
        self._unread = b""
        self._events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while (answer := self._receive()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            received = os.read(self._read.fileno(), 1 << 20)
            assert received, "Chromium has ended"
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, url: str) -> None:
        seen = len(self._events)
        self._call("Page.navigate", url=url)
        while all(event["method"] != "Page.loadEventFired" for event in self._events[seen:]):
            self._events.append(self._receive())

    def run(self, script: str) -> Any:
        answer = self._call(
            "Runtime.evaluate",
            expression=f"(async () => {{{script}}})()",
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def stroke(self, points: Sequence[Point], pointer: str = "mouse") -> None:
        phases = ["Start"] + ["Move"] * (len(points) - 1) + ["End"]
        for phase, point in zip(phases, [*points, points[-1]], strict=True):
            if pointer == "touch":
                touching = [] if phase == "End" else [point._asdict()]
                self._call("Input.dispatchTouchEvent", type=f"touch{phase}", touchPoints=touching)
                continue
            kind = {"Start": "mousePressed", "Move": "mouseMoved", "End": "mouseReleased"}[phase]
            pressed = {"button": "left", "buttons": 1, "clickCount": 1, "pointerType": pointer}
            self._call("Input.dispatchMouseEvent", type=kind, **pressed, **point._asdict())

    def key(self, name: str) -> None:
        _, text, code = KEYS.get(name, ("", name, ord(name[0].upper())))
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self._call(
                "Input.dispatchKeyEvent",
                type=kind, key=name, windowsVirtualKeyCode=code, **typed,
            )  # fmt: skip

    def show(self, width: int, height: int, scheme: str) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self._call("Emulation.setDeviceMetricsOverride", mobile=False, **size)
        preferred = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[preferred])

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call("Page.captureScreenshot")["data"])

    def messages(self) -> list[str]:
        said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self._seen() if event["method"] in said]

    def requests(self) -> list[str]:
        sent = "Network.requestWillBeSent"
        urls = [
            event["params"]["request"]["url"] for event in self._seen() if event["method"] == sent
        ]
        return [url for url in urls if not url.startswith("data:")]

    def _seen(self) -> list[dict[str, Any]]:
        self._call("Runtime.evaluate", expression="0")  # what was sent before has come by now
        return self._events

    def close(self) -> None:
        _end(self._process)
        self._read.close()
        self._write.close()


class Firefox:
    """Firefox over Marionette: JSON messages with their length before them."""

    PROGRAM = find("firefox", "firefox-esr")
    PREFERENCES: Mapping[str, Any] = {
        "marionette.port": 0,  # a free one, which Firefox writes to its profile
        "app.normandy.enabled": False,
        "app.update.disabledForTesting": True,
        "browser.shell.checkDefaultBrowser": False,
        "datareporting.policy.dataSubmissionEnabled": False,
        "network.captive-portal-service.enabled": False,
        "network.connectivity-service.enabled": False,
        "services.settings.server": "data:,#remote-settings-dummy/v1",
        "toolkit.telemetry.server": "data:,",
    }

    def __init__(self, folder: Path) -> None:
        assert self.PROGRAM
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "user.js").write_text("".join(
            f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
            for name, value in self.PREFERENCES.items()
        ))  # fmt: skip
        options = ["--headless", "--marionette", "--remote-allow-system-access", "--no-remote"]
        self._process = subprocess.Popen(
            [self.PROGRAM, *options, "--profile", str(folder), "about:blank"],
            env={**os.environ, "HOME": str(folder), "MOZ_CRASHREPORTER_DISABLE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port, deadline = folder / "MarionetteActivePort", time.monotonic() + SECONDS_TO_START
        while not (port.exists() and port.read_text()):
            assert self._process.poll() is None, "Firefox has ended"
            assert time.monotonic() < deadline, "Firefox does not start"
            time.sleep(0.1)
        self._socket = socket.create_connection(("127.0.0.1", int(port.read_text())))
        self._unread = b""
        self._number = 0
        self._receive()  # its greeting
        self._call("WebDriver:NewSession", {"capabilities": {"alwaysMatch": {}}})
        self._call("WebDriver:SetTimeouts", {"script": 120000})
        self._chrome("""
            const requests = globalThis.requests = [];
            Services.obs.addObserver((subject) => {
                const channel = subject.QueryInterface(Ci.nsIHttpChannel);
                // A page's own, not what Firefox asks for itself.
                if (!channel.loadInfo.loadingPrincipal?.isSystemPrincipal)
                    requests.push(channel.URI.spec);
            }, "http-on-modify-request");
        """)

    def _call(self, name: str, params: Mapping[str, Any] | None = None) -> Any:
        self._number += 1
        message = json.dumps([0, self._number, name, params or {}]).encode()
        self._socket.sendall(b"%d:%s" % (len(message), message))
        _, number, error, result = self._receive()
        assert number == self._number
        assert error is None, error
        return result

    def _receive(self) -> Any:
        while b":" not in self._unread:
            self._more()
        length, _, self._unread = self._unread.partition(b":")
        while len(self._unread) < int(length):
            self._more()
        message, self._unread = self._unread[: int(length)], self._unread[int(length) :]
        return json.loads(message)

    def _more(self) -> None:
        received = self._socket.recv(1 << 20)
        assert received, "Firefox has ended"
        self._unread += received

    def _chrome(self, script: str) -> Any:
        self._call("Marionette:SetContext", {"value": "chrome"})
        parameters = {"script": script, "args": [], "sandbox": "system", "newSandbox": False}
        result = self._call("WebDriver:ExecuteScript", parameters)
        self._call("Marionette:SetContext", {"value": "content"})
        return result["value"]

    def open(self, url: str) -> None:
        self._call("WebDriver:Navigate", {"url": url})

    def run(self, script: str, **where: str) -> Any:
        body = f"return (async () => {{{script}}})();"
        parameters = {"script": body, "args": [], **where}
        return self._call("WebDriver:ExecuteScript", parameters)["value"]

    def _perform(self, kind: str, actions: Sequence[Mapping[str, Any]], **more: Any) -> None:
        source = {"type": kind, "id": f"{kind} {more}", "actions": actions, **more}
        self._call("WebDriver:PerformActions", {"actions": [source]})

    def stroke(self, points: Sequence[Point], pointer: str = "mouse") -> None:
        moves = [
            {"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y)} for x, y in points
        ]
        down, up = ({"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp"))
        actions = [moves[0], down, *moves[1:], up]
        self._perform("pointer", actions, parameters={"pointerType": pointer})

    def key(self, name: str) -> None:
        value = KEYS[name][0] if name in KEYS else name
        self._perform("key", [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")])

    def show(self, width: int, height: int, scheme: str) -> None:
        override = {"dark": 0, "light": 1}[scheme]
        # A window of Firefox cannot be as narrow as a phone; the part that shows the page can.
        self._chrome(f"""
            Services.prefs.setIntPref("layout.css.prefers-color-scheme.content-override",
                {override});
            const window = Services.wm.getMostRecentWindow("navigator:browser");
            window.resizeTo({max(width, 500) + 100}, {height + 200});
            const style = window.gBrowser.selectedBrowser.style;
            for (const name of ["width", "minWidth", "maxWidth"]) style[name] = "{width}px";
            for (const name of ["height", "minHeight", "maxHeight"]) style[name] = "{height}px";
        """)
        deadline = time.monotonic() + SECONDS_TO_START
        while self.run("return [innerWidth, innerHeight];") != [width, height]:
            assert time.monotonic() < deadline, "Firefox does not change the page's size"
            time.sleep(0.05)

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call("WebDriver:TakeScreenshot", {"full": False})["value"])

    def messages(self) -> list[str]:
        errors: list[str] = self._chrome("""
            // Pages' own: Firefox itself has much to say.
            return Services.console.getMessageArray()
                .filter((message) => message instanceof Ci.nsIScriptError
                    && /^(file|https?|data):/.test(message.sourceName))
                .map(String);
        """)
        logged: list[str] = self.run(
            """
            return Cc["@mozilla.org/consoleAPI-storage;1"]
                .getService(Ci.nsIConsoleAPIStorage).getEvents()
                .map((event) => JSON.stringify(event.arguments));
            """,
            sandbox="system",
        )
        return errors + logged

    def requests(self) -> list[str]:
        asked: list[str] = self._chrome("return globalThis.requests;")
        return asked

    def close(self) -> None:
        self._socket.close()
        _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
