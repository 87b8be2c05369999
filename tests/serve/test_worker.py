"""Work for the engine's thread that is no answer: done between steps, in order, and its errors are its caller's."""

import threading
from concurrent.futures import CancelledError

import pytest

from kava.serve.worker import Worker, WorkerEnded


class Steps:
    """An engine that works until it is told not to; `step` lets a test see that it goes on."""

    idle = False

    def __init__(self):
        self.stepped = threading.Semaphore(0)

    def step(self):
        self.stepped.release()
        return []


@pytest.fixture
def worker():
    worker = Worker(Steps(), lambda _: None, lambda: None)
    yield worker
    if worker.alive:
        worker.stop()


def test_calls_run_in_the_thread_in_their_order_between_steps(worker):
    order = []
    futures = [worker.call(lambda i=i: order.append((i, threading.current_thread().name))) for i in range(3)]
    worker.start()
    for future in futures:
        future.result(10)
    assert order == [(i, "kava-engine") for i in range(3)]
    assert worker.engine.stepped.acquire(timeout=10)


def test_an_error_is_the_callers_and_the_thread_goes_on(worker):
    worker.start()
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(10)
    assert worker.call(lambda: 7).result(10) == 7


def test_what_nobody_waits_for_any_more_is_not_done(worker):
    done = []
    given_up, after = worker.call(lambda: done.append(1)), worker.call(lambda: done.append(2))
    assert given_up.cancel()
    worker.start()
    after.result(10)
    assert done == [2]
    with pytest.raises(CancelledError):
        given_up.result()


def test_a_thread_that_ends_says_so_to_all_that_wait(worker):
    gate = threading.Event()
    first, second = worker.call(gate.wait), worker.call(lambda: 1)
    worker.start()
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    while not worker._stopping:
        pass
    gate.set()
    stopping.join(10)
    assert first.result(10)
    for future in (second, worker.call(lambda: 2)):
        with pytest.raises(WorkerEnded):
            future.result(10)
