"""A page in headless Chromium: what it shows, asks of the network and complains about."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", "about:blank"),
)


@dataclass
class Page:
    """An open page; ``complaints`` are errors and warnings of any kind, ``asked`` all URLs."""

    loop: asyncio.AbstractEventLoop
    socket: aiohttp.ClientWebSocketResponse
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    _number: int = 0
    _loaded: bool = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something by DevTools' protocol."""
        return self.loop.run_until_complete(self._call(method, parameters))

    def open(self, path: Path, width: int = 1280, height: int = 900, **media: str) -> None:
        """Load a file; ``prefers_color_scheme="dark"`` and the like."""
        features = [{"name": k.replace("_", "-"), "value": v} for k, v in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        self.complaints.clear()
        self.asked.clear()
        self._loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self.loop.run_until_complete(self._read())
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        done = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def press(self, key: str, text: str = "", **more: Any) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            shown = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **shown, **more)

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        number = self._number
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while (message := await self._read()).get("id") != number:
            pass
        assert "error" not in message, message
        return message["result"]

    async def _read(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await self.socket.receive(60)).data)
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.asked.append(told["request"]["url"])
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.complaints.append(json.dumps(told))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(told))
        return message


@contextmanager
def browser() -> Iterator[Page]:
    """Chromium with an empty page; it ends with the block."""
    folder = Path(tempfile.mkdtemp())
    command = ["chromium", f"--user-data-dir={folder}", *_FLAGS]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    loop = asyncio.new_event_loop()
    try:
        session, page = loop.run_until_complete(_connect(folder / "DevToolsActivePort", loop))
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        yield page
        loop.run_until_complete(page.socket.close())
        loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(30)
        loop.close()
        shutil.rmtree(folder, ignore_errors=True)


async def _connect(
    told: Path, loop: asyncio.AbstractEventLoop
) -> tuple[aiohttp.ClientSession, Page]:
    for _ in range(600):
        if told.exists() and (words := told.read_text().split()):
            break
        await asyncio.sleep(0.1)
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{words[0]}/json") as answer:
        pages = [each for each in await answer.json() if each["type"] == "page"]
    socket = await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
    return session, Page(loop, socket)
