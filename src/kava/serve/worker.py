"""The thread in which the engine works; answers come back to the server's event loop."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from kava.serve.ask import Ask, Update
from kava.serve.engine import Engine


class WorkerEnded(Exception):
    """The thread has ended, and will not do what it was called for."""


class Worker:
    """Steps the engine while there is work. `deliver` gets what is new of a step, in this thread; `died` is called if the
    engine raised, after which nothing is answered any more."""

    def __init__(self, engine: Engine, deliver: Callable[[list[Update]], object], died: Callable[[], object]):
        self.engine, self._deliver, self._died = engine, deliver, died
        self._wake, self._stopping, self._ended = threading.Condition(), False, False
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._thread = threading.Thread(target=self._run, name="kava-engine", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def submit(self, asks: Iterable[Ask]) -> None:
        with self._wake:
            self.engine.waiting.extend(asks)
            self._wake.notify()

    def call(self, work: Callable[[], Any]) -> "Future[Any]":
        """What `work` returns or raises in this thread between two steps; calls wait in their order, a step after each."""
        future: Future[Any] = Future()
        with self._wake:
            if self._ended:
                future.set_exception(WorkerEnded())
            else:
                self._calls.append((future, work))
                self._wake.notify()
        return future

    def stop(self) -> None:
        """Ends after the step under way; answers that are not done are lost."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._call_one()
                if updates := self.engine.step():
                    self._deliver(updates)
        finally:
            self._end_calls()
            if not self._stopping:
                self._died()

    def _call_one(self) -> None:
        with self._wake:
            future, work = self._calls.popleft() if self._calls else (None, None)
        if future is None or work is None or not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - as in an executor: what work raises is its caller's
            future.set_exception(error)
        else:
            future.set_result(result)

    def _end_calls(self) -> None:
        with self._wake:
            self._ended = True
            for future, _ in self._calls:
                if future.set_running_or_notify_cancel():
                    future.set_exception(WorkerEnded())
            self._calls.clear()

    def _wait(self) -> bool:
        """Waits for work; False to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self._calls or not self.engine.idle)
            return not self._stopping
