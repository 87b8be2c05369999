"""`kava extract`: flags, estimates and refusals; the writer thread; `kava bench extract`."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import stores
from kava.cli.main import main
from kava.config import load_recipe
from kava.data.collate import Collator
from kava.lab.bench import extract as bench_extract
from kava.lab.bench import text as bench_text
from kava.teachers.background import background
from kava.teachers.base import TeacherWants
from kava.teachers.live import LiveTeacher
from kava.teachers.manifest import read_manifest
from kava.teachers.request import Request, read_source
from kava.teachers.store import StoredTeacher

SMALL = ["dataset.generator.train_size=23", "dataset.generator.val_size=6", "system.device=cpu"]
RECIPE = ["extract", "--config", "explicit_embedded", *SMALL, "--examples_per_shard", "7"]
TOY = ["--layers=2", "--width=32", "--heads=4", "--kv-heads=2", "--vocabulary=64", "--question=7", "--cot=11"]
TOY += ["--batch_size=3", "--batches=3", "--examples_per_shard=4", "--repeats=2"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says when it refuses: one line and a hint."""
    assert main([*RECIPE, *words]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) <= 2
    return err


# -- the command -----------------------------------------------------------------------------------------------------


def test_a_store_for_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "store"
    words = [*RECIPE, "--output_dir", str(folder), "--with_importance", "--with_cue"]
    assert main([*words, "--dry_run"]) == 0
    estimate = capsys.readouterr().out
    assert "29 examples x 2 x 2 layers x 4 heads x 24 x " in estimate
    assert " columns x 4 bytes + importance + cue = " in estimate
    assert not folder.exists()
    for i in (0, 1):
        assert main([*words, "--shard", f"{i}/2", "--quiet"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["shards"], found["written"], found["missing"]) == (5, 3 - i, 2 * (1 - i))
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith(estimate)
    assert f"0 shards written, 5 were there; the store is complete: {folder}" in out

    manifest = read_manifest(folder)
    assert manifest.teacher["name"] == "kava:embedded"
    assert manifest.data["examples"] == {"train": 23, "validation": 6}
    _serves_training_and_validation(folder)
    assert main(["extract", "--verify", "--output_dir", str(folder)]) == 0
    assert "29 examples in 5 shards, every hash is right" in capsys.readouterr().out


def _serves_training_and_validation(folder: Path) -> None:
    from kava.backbone.load import load_teacher, load_tokenizer, locate

    recipe = load_recipe("explicit_embedded", SMALL)
    tokenizer = load_tokenizer(locate(recipe.model.name), recipe.model)
    live = LiveTeacher(load_teacher(recipe, tokenizer, torch.device("cpu")))
    rows = read_source(recipe, tokenizer, ("train", "validation"), progress=False).encoded
    batch = Collator(tokenizer.pad_token_id)([rows[0], rows[28]])
    wants = TeacherWants(importance=True, cue=True)
    found, wanted = StoredTeacher(folder, progress=False)(batch, wants), live(batch, wants)
    real = batch["cot_mask"][:, None, :, None]
    torch.testing.assert_close(found.values[1], wanted.values[1].masked_fill(~real, 0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cue, wanted.cue, rtol=1e-4, atol=1e-4)


def test_verify_fails_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores.make(tmp_path)
    path = sorted(tmp_path.glob("kv-*"))[1]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["extract", "--verify", "--output_dir", str(tmp_path), "--quiet"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) == 1
    assert f"{path} is damaged: example set/train/9" in problems[0]
    path.unlink()
    assert main(["extract", "--verify", "--output_dir", str(tmp_path)]) == 1
    assert f"{path} is missing" in capsys.readouterr().out


def test_compressed_and_narrow(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    words = ["--output_dir", str(folder), "--kv_method", "r-kv", "--target_len", "3", "--dtype", "bfloat16"]
    assert main([*RECIPE, *words, "--splits", "train", "--quiet"]) == 0
    manifest = read_manifest(folder)
    assert (manifest.method, manifest.settings, manifest.target_len) == ("rkv", {"lambda_": 0.1, "centred": False}, 3)
    assert (manifest.dtype, manifest.num_examples) == ("bfloat16", 23)
    assert manifest.with_importance  # what rkv chooses from is asked for in training too
    StoredTeacher(folder).check_recipe(load_recipe("explicit_embedded", ["explicit.target_len=3"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kv_method", "random"], "random draws anew in every epoch"),
        (["--kv_method", "rkw"], "unknown --kv_method 'rkw'"),
        (["--kv_method", "rkv", "rkv.shuffle=time"], "rkv.shuffle=time draws anew in every epoch"),
        (["--target_len", "4"], "--target_len has no effect with --kv_method raw"),
        (["--shard", "3/3"], "--shard 3/3 is not i/n with 0 <= i < n"),
        (["--shard", "one"], "tasks count from 0"),
        (["--dtype", "float8"], "unknown --dtype 'float8'"),
        (["--splits", "test"], "unknown split 'test'"),
        (["teacher.store=elsewhere"], "teacher.store is set"),
        (["--verify"], "--verify looks at a store as it is"),
        (["--shards", "1"], "unknown flag '--shards'"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in said(capsys, "--output_dir", str(tmp_path / "s"), *words)
    assert not (tmp_path / "s").exists()


def test_another_store_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores.make(tmp_path)
    assert "holds another teacher store: teacher.name is 'tiny' here" in said(capsys, "--output_dir", str(tmp_path))
    assert main(["extract", "--output_dir", str(tmp_path)]) == 2
    assert "needs --config" in capsys.readouterr().err
    assert main(["extract", "--verify", "--output_dir", str(tmp_path / "no")]) == 2
    assert "is not a teacher store" in capsys.readouterr().err


def test_what_the_recipe_still_needs() -> None:
    def lacks(*settings: str, **fields: Any) -> list[str]:
        recipe = load_recipe("explicit_embedded", list(settings))
        return Request(**fields).checked(recipe).lacks(recipe)

    base = ("rkv.method=rkv", "loss.alpha1_codi=0")
    assert lacks(*base) == ["--with_importance"]
    assert lacks(*base, with_importance=True) == []
    assert lacks(*base, method="rkv") == []
    assert lacks("rkv.method=crop", "loss.alpha1_codi=1") == ["--with_cue"]
    assert lacks("rkv.method=crop", "loss.alpha1_codi=0") == []
    assert lacks("rkv.method=crop", "explicit.attention_weighted=true", "loss.alpha1_codi=0") == ["--with_importance"]


# -- the thread that writes ------------------------------------------------------------------------------------------


def test_jobs_run_in_order_and_few_wait() -> None:
    done: list[int] = []
    gate, waiting = threading.Event(), []

    def job(i: int) -> None:
        gate.wait(5)
        done.append(i)

    def feed() -> None:
        with background(ahead=2) as later:
            for i in range(6):
                waiting.append(i)
                later(job, i)

    feeder = threading.Thread(target=feed)
    feeder.start()
    while len(waiting) < 3:
        pass
    feeder.join(0.05)
    assert len(waiting) == 3  # two wait, the third call does not return
    gate.set()
    feeder.join(5)
    assert done == list(range(6))


def test_a_jobs_error_surfaces_and_drops_the_rest() -> None:
    done: list[int] = []

    def job(i: int) -> None:
        if i == 1:
            raise OSError("no space")
        done.append(i)

    def feed() -> None:
        with background(ahead=9) as later:
            for i in range(4):
                later(job, i)

    with pytest.raises(OSError, match="no space"):
        feed()
    assert 0 in done
    with pytest.raises(KeyError), background():
        raise KeyError("main")


# -- the benchmark ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--kv_method=rkv", "--target_len=3", "--dtype=bfloat16"]])
def test_bench(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    assert main(["bench", "extract", *TOY, *more, "--quiet", "--output", str(file)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(file.read_text()) == result
    assert set(result["ways"]) == {"forward", "ours", "extract"}
    assert result["tokens"] == 9 * (7 + 11 + 4 + 4 + 1)
    assert result["ratio"]["extract"] == 1
    for way in result["ways"].values():
        assert len(way["rounds"]) == 2
        assert way["tokens_per_second"] == pytest.approx(result["tokens"] / way["seconds"])
    text = bench_text.extract_text(result)
    assert text.isascii()
    assert "of the bare forward pass's tokens per second" in text


def test_bench_times_nothing_when_the_store_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_extract, "take_turns", lambda *_, **__: pytest.fail("timed all the same"))
    right = StoredTeacher.__call__

    def wrong(self: StoredTeacher, *given: Any) -> Any:
        seen = right(self, *given)
        seen.values[0][0, 0, 0, 0] += 1e-6
        return seen

    monkeypatch.setattr(StoredTeacher, "__call__", wrong)
    assert main(["bench", "extract", *TOY]) == 1
    assert "stored keys and values are not the teacher's" in capsys.readouterr().out


def test_bench_refuses_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["--width=30"], "do not fit"), (["--folder", str(tmp_path / "no")], "is not a folder")):
        assert main(["bench", "extract", *words]) == 2
        assert message in capsys.readouterr().err
