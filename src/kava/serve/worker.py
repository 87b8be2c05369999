"""The thread in which the engine works; answers come back to the server's event loop."""

import threading
from collections.abc import Callable, Iterable

from kava.serve.ask import Ask, Update
from kava.serve.engine import Engine


class Worker:
    """Steps the engine while there is work. `deliver` gets what is new of a step, in this thread; `died` is called if the
    engine raised, after which nothing is answered any more."""

    def __init__(self, engine: Engine, deliver: Callable[[list[Update]], object], died: Callable[[], object]):
        self.engine, self._deliver, self._died = engine, deliver, died
        self._wake, self._stopping = threading.Condition(), False
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

    def stop(self) -> None:
        """Ends after the step under way; answers that are not done are lost."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                if updates := self.engine.step():
                    self._deliver(updates)
        finally:
            if not self._stopping:
                self._died()

    def _wait(self) -> bool:
        """Waits for work; False to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or not self.engine.idle)
            return not self._stopping
