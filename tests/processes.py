"""Two processes on this machine that meet over gloo: forked, by hand for a script, or under torchrun for the command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

TESTS = Path(__file__).parent


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), *sys.path])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def meeting(count: int) -> dict[str, str]:
    """What torchrun would tell every process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def forked(work: Callable[[int], object], count: int = 2) -> list[int]:
    """Exit codes of so many copies of this process, which has imported everything, that call `work` with their rank."""
    told, ranks = meeting(count), []
    for rank in range(count):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            code = 1
            try:
                os.environ.update(told | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
                AcceleratorState._reset_state(reset_partial_state=True)  # this process has trained alone
                GradientState._reset_state()
                work(rank)
                code = 0
            except BaseException:  # noqa: BLE001  (what the interpreter would print)
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]


def by_hand(script: str, *words: str, count: int = 2) -> list[int]:
    """Exit codes of so many processes of a script, started with what torchrun would tell them."""
    common = environment() | meeting(count)
    ranks = [
        subprocess.Popen(
            [sys.executable, script, *words], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(count)
    ]  # fmt: skip
    return [rank.wait(300) for rank in ranks]


def under_torchrun(*program: str, count: int = 2) -> list[str]:
    """`torchrun --standalone --nproc_per_node count PROGRAM`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return [*command, *program]


def torchrun(*words: str, count: int = 2) -> subprocess.Popen[str]:
    """`torchrun --nproc_per_node count -m kava ...`, both of its streams in one pipe."""
    command = under_torchrun("-m", "kava", *words, count=count)
    return subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str], code: int | None = 0) -> str:
    """What it said; its exit code must be `code` (None: any but 0)."""
    said, _ = process.communicate(timeout=600)
    assert process.returncode == code if code is not None else process.returncode, said[-3000:]
    return said
