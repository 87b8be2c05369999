"""kill -9 at ten random moments of an extraction, and after each a new start: the store of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kava.teachers.store import verify
from stores import content

SETTINGS = [
    "--config", "explicit_embedded", "dataset.generator.train_size=4000", "dataset.generator.val_size=200",
    "system.device=cpu", "--examples_per_shard", "40", "--batch_size", "8", "--with_importance", "--with_cue",
]  # fmt: skip


def start(folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "kava", "extract", "--output_dir", str(folder), *SETTINGS, "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.long
def test_kill_at_random_moments(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    assert start(whole).wait() == 0
    seconds = time.monotonic() - began
    draw, killed, partial, between = random.Random(0), 0, 0, 0
    while killed < 10:
        (folder / ".lock-0-of-1").unlink(missing_ok=True)
        process = start(folder)
        while process.poll() is None and not (folder / ".lock-0-of-1").exists():  # it has loaded everything
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 0.12 * seconds))
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL)
        killed += 1
        partial += any(folder.glob(".partial-*"))
        between += any(folder.glob("kv-*")) and not (folder / "index.json").exists()
        assert all(path.read_bytes() == (whole / path.name).read_bytes() for path in folder.glob("kv-*"))
    assert partial, "no kill came while a shard was written"
    assert between, "no kill came between two shards"
    assert start(folder).wait() == 0
    assert content(folder) == content(whole)
    assert verify(folder, progress=False) == []
