"""`kava bench gpu`: runs the items in a process of their own, and loses no result whatever happens to it.

A process that ends, or that is stopped because an item took too long, costs that one item; the others go on in a new
process. The result is written after every item.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from types import TracebackType
from typing import Any

from kava.errors import ConfigError
from kava.files import make_folder, open_append, write_json, write_text
from kava.lab.bench.gpu.items import ITEMS
from kava.lab.bench.gpu.report import kit_text, log_entry
from kava.lab.run_local import last_line
from kava.outputs import Output, begins, check_folder, check_outputs, has_keys
from kava.progress import progress

Event = dict[str, Any]  # as in worker.py, and {ended: exit code, words: the last of its output}
START = 120.0  # seconds for the imports and the first call of the device
RESULT, TABLE, ENTRY, WORDS = "result.json", "table.txt", "LOG-entry.md", "worker.log"


class KitProcess:
    """A worker; `next` gives its next event, {ended: exit code} when there are no more, None after so many seconds."""

    def __init__(self, command: Sequence[str], log: Path):
        self._log, self._words = open_append(log), log
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, env=environment, start_new_session=True, encoding="utf-8"
        )
        self._events: Queue[Event] = Queue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))
        self._events.put({"ended": self._process.wait(), "words": last_line(self._words)})

    def next(self, seconds: float) -> Event | None:
        try:
            return self._events.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def __enter__(self) -> "KitProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it with whatever it has started: compilers have processes of their own."""
        if self._process.poll() is None:
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()


def watched_events(
    names: Sequence[str],
    start: Callable[[list[str]], KitProcess],
    minutes: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """The machine and a record of every item, in processes that `start` makes for the items still to run."""
    waiting, deadline = list(names), clock() + 60 * minutes
    while waiting:
        with start(list(waiting)) as process:
            yield from _until_it_ends(process, waiting, lambda: deadline - clock())


def _until_it_ends(process: KitProcess, waiting: list[str], left: Callable[[], float]) -> Iterator[Event]:
    """The events of one process, until it ends or has to be stopped. Items with a record leave `waiting`."""
    begun, limit = False, START
    while waiting:
        event = process.next(min(limit, left()))
        if event is None and left() <= 0:
            yield from _not_run(waiting, "the kit's time was over")
        elif event is None:
            yield _record(waiting.pop(0), "failed", f"stopped after {limit:.0f} s", limit)
            return
        elif "ended" in event:
            reason = f"its process ended with code {event['ended']}: {event['words']}"
            yield _record(waiting.pop(0), "failed", reason)
            if not begun:
                yield from _not_run(waiting, "its process does not start")
            return
        elif "record" in event:
            waiting.pop(0)
            yield event
            if event.get("ends"):
                return
        else:
            if "begins" in event:
                begun, limit = True, ITEMS[event["begins"]].seconds
            yield event


def _not_run(waiting: list[str], reason: str) -> Iterator[Event]:
    while waiting:
        yield _record(waiting.pop(0), "not run", reason)


def _record(name: str, state: str, text: str, seconds: float = 0.0) -> Event:
    facts = {"state": state, "text": text, "seconds": round(seconds, 1), "figures": {}}
    return {"record": {"name": name, "title": ITEMS[name].title, **facts}}


def run_kit(
    names: Sequence[str],
    device: str,
    tiny: bool,
    minutes: float,
    folder: Path,
    in_process: bool,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """The result of all items as data; result.json, table.txt and LOG-entry.md in `folder` follow every item."""
    check_folder("--output_dir", folder)
    check_outputs([
        Output("the result", folder / RESULT, has_keys("hardware", "items")),
        Output("the table", folder / TABLE, begins("GPU kit")),
        Output("the entry for the log", folder / ENTRY, begins("## ")),
        Output("the worker's words", folder / WORDS),
    ])  # fmt: skip
    make_folder(folder)

    with tempfile.TemporaryDirectory(prefix="kava-gpu-") as scratch:  # also what a stopped process leaves behind

        def start(waiting: list[str]) -> KitProcess:
            request = json.dumps({"device": device, "tiny": tiny, "names": waiting, "scratch": scratch})
            return KitProcess([sys.executable, "-m", "kava.lab.bench.gpu.worker", request], folder / WORDS)

        if in_process:
            from kava.lab.bench.gpu.worker import events

            source: Iterator[Event] = events(device, tiny, names, scratch)
        else:
            source = watched_events(names, start, minutes)
        return _collect(source, names, tiny, folder, show)


def _collect(
    source: Iterator[Event], names: Sequence[str], tiny: bool, folder: Path, show: Callable[[str], None]
) -> dict[str, Any]:
    began = time.monotonic()
    result: dict[str, Any] = {"tiny": tiny, "complete": False, "hardware": {}, "versions": {}, "items": []}
    with progress("GPU kit", len(names), "items") as meter:
        for event in source:
            if "refused" in event:
                raise ConfigError(event["refused"], event["hint"])
            if "begins" in event:
                meter.note = event["begins"]
                continue
            result |= event.get("machine", {})
            if "record" in event:
                result["items"].append(event["record"])
                show("{state:<7} {name}: {text}, {seconds} s".format(**event["record"]))
                meter.advance()
            result["seconds"] = round(time.monotonic() - began, 1)
            result["complete"] = len(result["items"]) == len(names)
            write_json(folder / RESULT, result)
            write_text(folder / TABLE, kit_text(result) + "\n")
            write_text(folder / ENTRY, log_entry(result))
    return result
