"""`kava bench train` at a toy size: it checks before it times, and what it calls a pass is a pass."""

from __future__ import annotations

import json

import pytest
import torch

from kava.backbone.yardstick import random_llama
from kava.cli.main import main
from kava.config import LatentConfig
from kava.evaluate import bench_train
from kava.evaluate.bench_train import PccotOrder, Sizes, objectives, random_batch

TOY = ["--layers=2", "--width=32", "--heads=4", "--kv-heads=2", "--vocabulary=64", "--question=7", "--cot=11"]
TOY += ["--latents=4", "--rounds=2", "--batch_size=3", "--repeats=2"]
ORDERS = {"packed": 3, "unpacked": 4, "pccot": 5}


def test_result_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *TOY, "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["equal"]
    assert {name: order["passes"] for name, order in result["orders"].items()} == ORDERS
    assert result["ratio"]["packed"] == 1
    assert result["hardware"]["cpus"] >= 1
    for order in result["orders"].values():
        assert len(order["rounds"]) == 2
        assert order["seconds"] > 0


def test_table_is_ascii_and_names_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *TOY]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    assert "threads" in text
    assert "PCCoT's order of passes" in text


def test_unequal_losses_are_a_failed_check_and_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = PccotOrder._kv_from
    monkeypatch.setattr(PccotOrder, "_kv_from", lambda *given: 1.01 * right(*given))
    monkeypatch.setattr(bench_train, "_timed", lambda *_: pytest.fail("timed all the same"))
    assert main(["bench", "train", *TOY]) == 1
    assert "pccot: kv is" in capsys.readouterr().out
    assert main(["bench", "train", *TOY, "--quiet"]) == 1
    assert json.loads(capsys.readouterr().out)["equal"] is False


def test_passes_are_what_the_decoder_is_called_for() -> None:
    sizes = Sizes(2, 32, 4, 2, 64, 7, 11, 4, 2, 3)
    model = random_llama(2, 32, 4, 2, 64, LatentConfig(num_tokens=4, num_iterations=2))
    batch = random_batch(sizes, torch.device("cpu"))
    for name, (_, passes, kind) in objectives(model).items():
        calls: list[int] = []
        handle = model.decoder.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        kind(batch)
        handle.remove()
        assert len(calls) == passes == ORDERS[name]


def test_gradients_of_the_yardstick_are_those_of_the_packed_order() -> None:
    from compare import assert_same, measure

    model = random_llama(2, 32, 4, 2, 64, LatentConfig(num_tokens=4, num_iterations=2))
    batch = random_batch(Sizes(2, 32, 4, 2, 64, 7, 11, 4, 2, 3), torch.device("cpu"))
    kinds = objectives(model)
    assert_same(measure(kinds["pccot"][2], batch), measure(kinds["packed"][2], batch), 1e-5)


def test_sizes_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *TOY, "--heads=3"]) == 2
    assert "do not fit" in capsys.readouterr().err


@pytest.mark.long
def test_packed_is_faster_at_the_size_that_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    """1.3 times PCCoT's order of passes; processor time, because tests run on shared machines."""
    assert main(["bench", "train", "--quiet", "--repeats=5"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert max(result["ratio"]["pccot"], result["cpu_ratio"]["pccot"]) >= 1.3
