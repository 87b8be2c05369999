"""`kava bench gpu` in toy sizes on the CPU: every item works, and nothing that happens to one loses the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kava.cli.main import main
from kava.lab.bench import host_reads as reading
from kava.lab.bench.gpu import items as kit_items
from kava.lab.bench.gpu import kit, precision, rates, report, train_step, worker
from kava.lab.bench.gpu.items import ITEMS, KitFailure, KitFinding, KitItem
from kava.lab.selfcheck.context import Skipped
from kava.objective.objective import Objective

SRC = Path(__file__).resolve().parents[2] / "src"
TINY = ["bench", "gpu", "--device", "cpu", "--tiny", "--in_process", "--output_dir"]
QUICK = ["float32", "half", "checkpointing", "kernels", "train-llama-1b", "answer", "extract", "recipe"]
CPU = torch.device("cpu")


# -- the items -------------------------------------------------------------------------------------------------------


def test_items_run_in_toy_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, str(tmp_path), "--items", *QUICK, "--quiet"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result == json.loads((tmp_path / kit.RESULT).read_text())
    assert [(item["name"], item["state"]) for item in result["items"]] == [(name, "ok") for name in QUICK]
    assert (result["complete"], result["tiny"], result["hardware"]["half"]) == (True, True, "bfloat16")
    assert result["versions"]["torch"] == torch.__version__
    figures = {item["name"]: item["figures"] for item in result["items"]}
    step = figures["train-llama-1b"]
    assert step["gflop"]["pccot"] > step["gflop"]["packed"] > 0
    assert step["mfu"] is None
    assert all(step[name] > 0 for name in ("ratio", "tokens_per_second", "share_of_a_product"))
    assert figures["checkpointing"]["peak_bytes_checkpointed"] < figures["checkpointing"]["peak_bytes"]
    assert {"batch_1", "batch_2"} == set(figures["answer"])
    assert all(of["same_tokens"] == 1 for of in figures["answer"].values())
    assert figures["recipe"]["host_reads_per_update"] > 0
    table = (tmp_path / kit.TABLE).read_text()
    assert table.isascii()
    assert max(map(len, table.splitlines())) <= report.COLUMNS
    assert "toy sizes: no figure here means anything" in table
    entry = (tmp_path / kit.ENTRY).read_text()
    assert entry.startswith(f"## {result['started'][:10]} - The GPU kit on cpu\n")
    assert all(f"| {name} | ok |" in entry for name in QUICK)
    assert main([*TINY, str(tmp_path), "--items", "extract"]) == 0  # its own files may be replaced
    assert "1 ok in" in capsys.readouterr().out


def test_a_wrong_number_fails_one_item_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(precision.LIMITS, "float32", (0.0, 0.0))
    assert main([*TINY, str(tmp_path), "--items", "float32", "extract"]) == 1
    assert "1 failed, 1 ok in" in capsys.readouterr().out
    first, second = json.loads((tmp_path / kit.RESULT).read_text())["items"]
    assert first["state"] == "failed"
    assert "are rounding" in first["text"]
    assert second["state"] == "ok"


@pytest.mark.parametrize(
    ("error", "state", "text", "goes_on"),
    [
        (Skipped("the package x is not installed"), "skipped", "the package x is not installed", True),
        (ModuleNotFoundError("No module named 'y'", name="y"), "skipped", "the package y is not installed", True),
        (ModuleNotFoundError("a lazy import"), "failed", "ModuleNotFoundError: a lazy import", False),
        (KitFailure("off by\n1"), "failed", "off by 1", True),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "failed", "OutOfMemoryError: CUDA out of memory.", False),
    ],
    ids=["skipped", "package", "some-import", "failure", "unforeseen"],
)
def test_what_an_item_raises_is_its_record(
    error: Exception, state: str, text: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(item: KitItem, _: Any) -> KitFinding:
        if item.name == "float32":
            raise error
        return KitFinding("seen", {"number": 1})

    monkeypatch.setattr(KitItem, "run", run)
    events: list[Any] = []
    source = worker.events("cpu", True, ["float32", "half"], str(tmp_path))
    if goes_on:
        events = list(source)
        assert events[-1]["record"]["figures"] == {"number": 1}
    else:
        with pytest.raises(type(error)):
            events.extend(source)
        assert events[-1]["ends"]
    record = next(event["record"] for event in events if "record" in event)
    assert (record["name"], record["state"], record["text"]) == ("float32", state, text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--items", "flot32"], "did you mean 'float32'?"),
        (["--device", "cpu"], "too large for a CPU"),
        (["--device", "cuda"], "device 'cuda' is not available on this machine"),
        (["--device", "mps"], "cuda"),
        (["--minutes", "0"], "minutes"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main(["bench", "gpu", "--in_process", "--output_dir", str(folder), *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not folder.exists() or not any(folder.iterdir())


def test_another_file_of_that_name_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / kit.RESULT).write_text('{"mine": 1}')
    assert main([*TINY, str(tmp_path), "--items", "extract"]) == 2
    assert "kava did not write it" in capsys.readouterr().err
    assert (tmp_path / kit.RESULT).read_text() == '{"mine": 1}'


def test_the_list_is_read_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ITEMS)
    assert all(getattr(kit_items, "torch", None) is None for _ in ITEMS)


# -- the processes ---------------------------------------------------------------------------------------------------


class ScriptedProcess:
    """A process of which the events are known; None: nothing happens until the time is over."""

    def __init__(self, events: list[Any], clock: list[float]):
        self.events, self.clock = events, clock
        self.ended = False

    def next(self, seconds: float) -> Any:
        event = self.events.pop(0)
        self.clock[0] += max(0.0, seconds) if event is None else 1.0
        return event

    def __enter__(self) -> ScriptedProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        self.ended = True


def done(name: str, **more: Any) -> dict[str, Any]:
    return {"record": {"name": name, "state": "ok"}, **more}


def begins(name: str) -> dict[str, Any]:
    return {"begins": name}


NAMES = ["float32", "half", "kernels"]
MACHINE = {"machine": {}}
SCRIPTS = {
    "all well": (
        [[MACHINE, *[event for name in NAMES for event in (begins(name), done(name))]]],
        8.0,
        ["ok", "ok", "ok"],
    ),
    "a crash": (
        [
            [
                MACHINE,
                begins("float32"),
                done("float32"),
                begins("half"),
                {"ended": -11, "words": "Segmentation fault"},
            ],
            [MACHINE, begins("kernels"), done("kernels")],
        ],
        8.0,
        ["ok", "failed", "ok"],
    ),
    "an error that ends the process": (
        [
            [MACHINE, begins("float32"), {"record": {"name": "float32", "state": "failed"}, "ends": True}],
            [MACHINE, begins("half"), done("half"), begins("kernels"), done("kernels")],
        ],
        8.0,
        ["failed", "ok", "ok"],
    ),
    "an item that hangs": (
        [
            [MACHINE, begins("float32"), None],
            [MACHINE, begins("half"), done("half"), begins("kernels"), done("kernels")],
        ],
        8.0,
        ["failed", "ok", "ok"],
    ),
    "no time left": (
        [[MACHINE, begins("float32"), done("float32"), begins("half"), None]],
        0.3,
        ["ok", "not run", "not run"],
    ),
    "no start": ([[{"ended": 1, "words": "No module named 'torch'"}]], 8.0, ["failed", "not run", "not run"]),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_result_is_lost(name: str) -> None:
    scripts, minutes, states = SCRIPTS[name]
    clock, started, processes = [0.0], [], []
    queue = [list(script) for script in scripts]

    def start(waiting: list[str]) -> Any:
        started.append(waiting)
        processes.append(ScriptedProcess(queue.pop(0), clock))
        return processes[-1]

    seen = list(kit.watched_events(NAMES, start, minutes, lambda: clock[0]))
    records = [event["record"] for event in seen if "record" in event]
    assert [record["name"] for record in records] == NAMES
    assert [record["state"] for record in records] == states
    assert all(process.ended for process in processes)
    assert not queue
    for waiting, before in zip(started[1:], started, strict=False):
        assert len(waiting) < len(before)
    if name == "a crash":
        assert records[1]["text"] == "its process ended with code -11: Segmentation fault"
    if name == "an item that hangs":
        assert records[0]["text"] == f"stopped after {ITEMS['float32'].seconds:.0f} s"


def test_a_process_is_ended_with_what_it_started(tmp_path: Path) -> None:
    script = "import os, sys; print('{\"begins\": \"half\"}', flush=True); print('last words', file=sys.stderr); sys.stdin.read()"
    with kit.KitProcess(
        [sys.executable, "-S", "-c", script + "; os.read(os.pipe()[0], 1)"], tmp_path / "words"
    ) as process:
        assert process.next(30) == {"begins": "half"}
        assert process.next(0.05) is None
    assert process._process.poll() is not None
    with kit.KitProcess([sys.executable, "-S", "-c", "raise SystemExit('too bad')"], tmp_path / "words") as process:
        assert process.next(30) == {"ended": 1, "words": "too bad"}


@pytest.mark.long
def test_the_whole_kit_in_its_process_without_optional_packages(tmp_path: Path) -> None:
    """datasets and bitsandbytes cannot be imported, as on an image that lacks them."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_spec(name, path=None, target=None):\n"
        "    absent = name.partition('.')[0] in ('datasets', 'bitsandbytes')\n"
        "    return None if absent else find(name, path, target)\n"
        "PathFinder.find_spec = staticmethod(find_spec)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(SRC)])}
    words = ["bench", "gpu", "--device", "cpu", "--tiny", "--output_dir", str(tmp_path / "out")]
    finished = subprocess.run(
        [sys.executable, "-m", "kava", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr
    result = json.loads((tmp_path / "out" / kit.RESULT).read_text())
    assert [item["name"] for item in result["items"]] == list(ITEMS)
    states = {item["name"]: item["state"] for item in result["items"]}
    assert states == dict.fromkeys(ITEMS, "ok") | {"nf4": "skipped"}, result["items"]


# -- what the items measure with -------------------------------------------------------------------------------------


def test_host_reads_are_what_waits_for_a_number() -> None:
    numbers, mask = torch.arange(6.0), torch.tensor([True, False, True, False, True, False])

    def waits() -> None:
        float(numbers.sum())
        numbers.nonzero()
        numbers[mask]
        bool(torch.equal(numbers, numbers))

    assert reading.host_reads(waits, CPU) == 4
    assert reading.host_reads(lambda: (numbers @ numbers, numbers[2:], numbers[torch.tensor([1])]), CPU) == 0


def test_host_reads_reach_the_backward_pass() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, numbers: torch.Tensor) -> torch.Tensor:
            return numbers.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float(gradient.sum())

    numbers = torch.ones(3, requires_grad=True)
    assert reading.host_reads(lambda: Reads.apply(numbers).sum().backward(), CPU) == 1


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_rates_of_data_sheets_go_by_whole_words(name: str, rate: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert rates.data_sheet_rate(torch.device("cuda")) == rate
    assert rates.data_sheet_rate(CPU) is None


def test_a_smaller_batch_is_taken_where_the_first_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Objective.forward

    def small_card(self: Objective, batch: Any, *rest: Any) -> Any:
        if len(batch["question"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(self, batch, *rest)

    monkeypatch.setattr(Objective, "forward", small_card)
    for name, number in {"gflop": 1.0, "peak_memory": 1, "host_reads": 0, "product_rate": 1.0}.items():
        monkeypatch.setattr(train_step, name, lambda *_, number=number: number)  # measured in all items above
    setup = kit_items.KitSetup(CPU, torch.bfloat16, True, tmp_path)
    assert ITEMS["train-llama-1b"].run(setup).figures["batch_size"] == 1
