"""kava align: one text looked at, and a layer map made."""

from __future__ import annotations

import json

import pytest
import torch

import many
from kava.align.layers import read_map
from kava.align.tokens import build_char_align_matrix
from kava.cli.main import main
from kava.data.collate import Collator
from kava.data.encode import encode_split
from kava.data.teacher_texts import TeachersCollator, texts_of
from kava.errors import DataError
from kava.losses.cka import cka
from kava.teachers.base import TeacherWants
from kava.teachers.layer_similarity import layer_similarity
from kava.teachers.teacher_set import load_teacher_set

TEXT = "She has 16 - 3 = 13 eggs. \u4e2d\u6587"


def models(teacher: str) -> list[str]:
    return ["--student_model", many.student_folder(), "--teacher_model", many.folder(teacher)]


def test_a_text_is_shown(capsys) -> None:
    assert main(["align", "show", *models("qwen3"), "--text", TEXT]) == 0
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert "' has'" in shown
    assert "coverage 100.0 %" in shown
    assert "every teacher layer has a part" in shown


def test_the_same_as_json(capsys) -> None:
    assert main(["align", "show", *models("gpt2"), "--text", TEXT, "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = build_char_align_matrix(TEXT, many.joined(), many.digits())
    torch.testing.assert_close(torch.tensor(found["aligned"]), wanted)
    assert len(found["student"]) == len(found["iou"])
    assert found["unused_teacher_layers"] == [1, 2, 3]  # two student layers: the first and the last of five


def test_tokens_without_a_partner_are_named(capsys) -> None:
    assert main(["align", "show", *models("qwen3"), "--text", TEXT, "--threshold", "0.9"]) == 0
    shown = capsys.readouterr().out
    assert "not matched: 0 'S'  1 'he'" in shown
    assert "100.0 %" not in shown


def test_a_map_is_made_and_read(capsys, tmp_path) -> None:
    path = tmp_path / "map.json"
    words = [
        "align",
        "precompute",
        *models("gpt2"),
        "--dataset_name",
        "chains",
        "--num_samples",
        "6",
        "--output",
        str(path),
    ]
    assert main([*words, "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_samples"] <= 6
    layers = read_map(path, 2, 5)
    assert found["layer_mapping"] == {str(s): [list(pair) for pair in entry] for s, entry in enumerate(layers)}
    assert main(["align", "show", *models("gpt2"), "--text", "3+4=7", "--layer_map_file", str(path)]) == 0
    assert all(f"{layer} ({weight:.2f})" in capsys.readouterr().out for layer, weight in layers[0][:1])


def test_a_model_is_most_like_itself(tmp_path, capsys) -> None:
    """CKA(X, X) = 1, so each layer is given itself, and nothing else."""
    path, same = tmp_path / "map.json", many.folder("gpt2")
    words = ["align", "precompute", "--student_model", same, "--teacher_model", same, "--dataset_name", "chains"]
    assert main([*words, "--num_samples", "6", "--batch_size", "3", "--output", str(path)]) == 0
    assert read_map(path, 5, 5) == [[(layer, 1.0)] for layer in range(5)]
    assert "every teacher layer has a part" in capsys.readouterr().out


def test_likeness_is_the_mean_of_cka_over_keys_and_values() -> None:
    """Against CKA layer by layer, on keys that are carried over by hand; the batch does not matter."""
    recipe = many.recipe("small", "llama")
    both = load_teacher_set(recipe, many.tokenizer("small"), torch.device("cpu"))
    examples = [one for one in many.examples() if sum(map(len, one.steps[:-1])) > 20][:3]
    rows = encode_split(examples, both.tokenizations.student, progress=False).encoded
    collate = TeachersCollator(Collator(0), both.tokenizations, texts_of(examples))
    batch = collate(rows[:])
    mine, theirs = both(batch, TeacherWants(rotary=False))
    share = batch["t1.iou"] / batch["t1.iou"].sum(-1, keepdim=True).clamp(min=1e-9)
    mask = batch["cot_mask"] & (batch["t1.iou"].sum(-1) > 0)
    found, count = layer_similarity(both, [batch])
    assert count == 3
    for s in range(2):
        for t in range(3):
            wanted = 0.0
            for part in ("keys", "values"):
                left = getattr(mine, part)[s].transpose(1, 2).flatten(2)
                right = torch.einsum("bij,bhjd->bihd", share, getattr(theirs, part)[t]).flatten(2)
                wanted += cka(left, right, mask, unbiased=True).mean().item() / 2
            assert found[s, t].item() == pytest.approx(wanted, abs=1e-4)
    split, _ = layer_similarity(both, [collate([row]) for row in rows])
    torch.testing.assert_close(split, found, atol=1e-4, rtol=0)
    with pytest.raises(DataError, match="4 matched tokens"):
        layer_similarity(both, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--dataset_name or --train_file"),
        (["--dataset_name", "chains", "--train_file", "x.jsonl"], "--dataset_name or --train_file"),
        (["--train_file", "x.jsonl", "--dataset_config", "main"], "--dataset_config has no effect"),
        (["--dataset_name", "chains", "--num_samples", "2", "--top_k", "9"], "--top_k is 9, the teacher has 3 layers"),
        (["--train_file", "/nowhere/x.jsonl"], "x.jsonl"),
    ],
)
def test_bad_words(words: list[str], message: str, capsys, tmp_path) -> None:
    assert main(["align", "precompute", *models("llama"), "--output", str(tmp_path / "m.json"), *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert not (tmp_path / "m.json").exists()


def test_models_that_cannot_be_read(capsys) -> None:
    words = ["align", "show", "--student_model", many.student_folder(), "--teacher_model", "/nowhere", "--text", "a"]
    assert main(words) == 2
    assert "/nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["align", "show", "--student_model", "a\x01", "--teacher_model", "b", "--text", "c"],
        ["align", "precompute", "--student_model", "kava:embedded", "--teacher_model", "kava:embedded",
         "--dataset_name", "a\x01", "--output", "new.json"],
        ["assets", "verify", "--model", "a\x01"],
        ["assets", "verify", "--dataset", "a\x01"],
    ],
)  # fmt: skip
def test_flags_are_held_to_what_a_recipe_may_say(words: list[str], tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert ": name: 'a\\x01' is text: it holds the character '\\x01', which is no text" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
