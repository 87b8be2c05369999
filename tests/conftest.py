"""Every test runs offline, on the CPU, on one thread. A test that opens a network connection fails."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Generator, Iterator
from itertools import groupby
from typing import Any

# before anything imports torch or transformers
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",
    "CUDA_VISIBLE_DEVICES": os.environ.get("KAVA_TEST_GPU", ""),
}.items():
    os.environ[_name] = _value

import pytest  # noqa: E402


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """KAVA_TEST_PART=i/n keeps every n-th of the selected tests, beginning with the i-th: n machines share a long run. The
    tests of a file that is marked in_order, whose later ones need what earlier ones made, stay together."""
    if part := os.environ.get("KAVA_TEST_PART"):
        number, _, count = part.partition("/")
        first, step = int(number) - 1, int(count)
        if not 0 <= first < step:
            raise pytest.UsageError(f"PART={part}: give 1/{step} to {step}/{step}")
        units = [
            list(unit)
            for together, tests in groupby(
                items, lambda item: item.path if item.get_closest_marker("in_order") else None
            )
            for unit in ([tests] if together else ([item] for item in tests))
        ]
        config.hook.pytest_deselected(
            items=[item for i, unit in enumerate(units) if i % step != first for item in unit]
        )
        items[:] = [item for unit in units[first::step] for item in unit]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What the tests import stays to the end: no garbage is looked for meanwhile, and none of it later, although every
    training asks for a full collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


_connect = socket.socket.connect


def _only_local(self: socket.socket, address: object) -> None:
    host = address[0] if isinstance(address, tuple) else "localhost"
    if host not in ("localhost", "127.0.0.1", "::1"):
        raise AssertionError(f"a test tried to reach {host}")
    _connect(self, address)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a test or a library sets in the environment ends with the test: accelerate leaves ACCELERATE_USE_FSDP there."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets to other machines are refused; local ones (worker processes, process groups) work."""
    monkeypatch.setattr(socket.socket, "connect", _only_local)
