"""A student is whole: every file of its folder is the one that was saved, and its weights are numbers."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub import tiny_student, without_hashes
from kava import Student
from kava.backbone.card import CARD, check_files, read_card
from kava.cli.main import main
from kava.errors import CheckpointError

WEIGHTS = "trained.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_student(tmp_path_factory.mktemp("whole") / "best_checkpoint")


@pytest.fixture
def student(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "student"))


def refusal(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """The one line that a verb says before it has printed anything else."""
    capsys.readouterr()
    assert main(["infer", "--checkpoint", str(folder), "--questions", "3+4?"]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    return printed.err


def flipped(folder: Path, rng: random.Random) -> str:
    """Flips bits of one byte of one file, every file as likely; the file's name and the place."""
    path = rng.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= rng.randrange(1, 256)
    path.write_bytes(bytes(content))
    return f"{path.name} at {place}"


def unchanged(folder: Path, saved: Path) -> bool:
    """Whether the card says the same and every file that it lists is the same (a space that became a tab)."""
    if not all((folder / name).read_bytes() == (saved / name).read_bytes() for name in read_card(saved).files or {}):
        return False
    try:
        return bool(json.loads((folder / CARD).read_bytes()) == json.loads((saved / CARD).read_bytes()))
    except ValueError:
        return False


@pytest.mark.parametrize("count", [60, pytest.param(400, marks=pytest.mark.long)])
def test_a_flipped_byte_is_refused_by_name(saved: Path, tmp_path: Path, count: int) -> None:
    rng, irrelevant = random.Random(count), 0
    for number in range(count):
        folder = Path(shutil.copytree(saved, tmp_path / str(number)))
        what = flipped(folder, rng)
        if unchanged(folder, saved):
            irrelevant += 1
        else:
            with pytest.raises(CheckpointError) as error:
                check_files(folder)
            assert what.split(" ")[0] in error.value.message, what
            assert "\n" not in error.value.message
        shutil.rmtree(folder)
    assert irrelevant < count / 20


@pytest.mark.parametrize(
    "name", [CARD, "recipe.yaml", WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_missing_or_longer_file(student: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = (student / name).read_bytes()
    (student / name).unlink()
    assert name in refusal(capsys, student)
    (student / name).write_bytes(content + b"x")
    assert name in refusal(capsys, student)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("recipe.yaml", "num_iterations: ", "num_iterations: 1"),
        ("recipe.yaml", "num_tokens: ", "num_tokens: 1"),
        ("recipe.yaml", "dtype: float32", "dtype: bfloat16"),
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-02'),
        (CARD, '"method": "latent"', '"method": "explicit"'),
        (CARD, '"frozen_fingerprint": "e', '"frozen_fingerprint": "f'),
    ],
)
def test_an_edited_setting(
    student: Path, name: str, before: str, after: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = student / name
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    assert f"{name} is not the file that was saved" in refusal(capsys, student)


def test_other_files_and_small_ones_of_the_user_do_not_matter(student: Path) -> None:
    (student / "README.md").write_text("mine")
    (student / ".cache").mkdir()
    assert Student.from_pretrained(student, "cpu").recipe.about.name == "debug"
    assert not {"README.md", CARD} & set(check_files(student).files or {})


def test_hashes_are_of_the_whole_folder(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = check_files(student).files
    assert listed is not None
    assert set(listed) == {path.name for path in student.iterdir()} - {CARD}
    path = student / CARD
    card = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({key: value for key, value in card.items() if key != "files"}))
    with pytest.raises(CheckpointError, match="not the file that was saved"):
        read_card(student)
    path.write_text(json.dumps({key: value for key, value in card.items() if key != "sha256"}))
    with pytest.raises(CheckpointError, match="not the file that was saved"):
        read_card(student)


# -- students without hashes, and damage that was hashed ----------------------------------------------------------


def test_a_student_without_hashes_loads_with_one_warning(student: Path, caplog: pytest.LogCaptureFixture) -> None:
    without_hashes(student)
    with caplog.at_level(logging.WARNING, logger="kava"):
        Student.from_pretrained(student, "cpu")
        Student.from_pretrained(student, "cpu")
    assert [record.getMessage() for record in caplog.records if "has no hashes" in record.getMessage()] == [
        f"{student} has no hashes (an earlier kava wrote it): damage to its files cannot be noticed"
    ]


def poison(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(folder / WEIGHTS)
    name = sorted(weights)[3]
    save_file(weights | {name: change(weights[name]).contiguous()}, folder / WEIGHTS)


def put(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        changed = weight.clone()
        changed.view(-1)[-1] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(float("nan")), "is not finite"),
        (put(float("inf")), "is not finite"),
        (put(float("-inf")), "is not finite"),
        (lambda weight: weight.to(torch.int64), "holds int64, not weights"),
        (lambda weight: weight > 0, "holds bool, not weights"),
        (lambda weight: weight.to(torch.complex64), "holds complex64, not weights"),
    ],
)
def test_weights_are_finite_numbers(
    student: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(without_hashes(student), change)
    message = refusal(capsys, student)
    assert WEIGHTS in message
    assert words in message


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_the_tokenizer_is_never_made_up(student: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (without_hashes(student) / name).unlink()
    assert f"{name} is missing" in refusal(capsys, student)


def test_what_the_card_says_is_compared(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_hashes(student, method="explicit")
    assert "method is explicit, recipe.yaml says latent" in refusal(capsys, student)
    without_hashes(student, method="latent", trained=["a", "b"])
    assert "trained does not name the weights" in refusal(capsys, student)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1]", "this is a list, a mapping is needed"),
        (b"null", "a mapping is needed"),
        (b'"card"', "a mapping is needed"),
        (b"\x80\xff\x00", "not a text file in UTF-8"),
        (b"", "not readable as JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": 1, "format": 1}', "appears twice"),
        (b'{"format": 1}', "method is missing"),
    ],
)
def test_a_card_that_is_none(student: Path, content: bytes, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (student / CARD).write_bytes(content)
    message = refusal(capsys, student)
    assert CARD in message
    assert words in message


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"format": "1"}, "format: '1' is text, a whole number is needed"),
        ({"format": 2}, "format 2, this version reads 1"),
        ({"method": 3}, "method"),
        ({"trained": None}, "trained: null, a list is needed"),
        ({"trained": "all"}, "trained: 'all' is text, a list is needed"),
        ({"trained": [1]}, "trained[0]: 1 is a number, text is needed"),
        ({"frozen_fingerprint": 7}, "frozen_fingerprint: 7 is a number, text is needed"),
        ({"step": [4]}, "step: a list, a whole number is needed"),
        ({"step": -1}, "step"),
        ({"files": ["a"]}, "files: a list, a mapping is needed"),
    ],
)
def test_a_card_with_other_types(
    student: Path, facts: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    without_hashes(student, **facts)
    message = refusal(capsys, student)
    assert CARD in message
    assert words in message


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 7},
        {"num_attention_heads": 0},
        {"head_dim": 0},
        {"vocab_size": 0, "pad_token_id": 0},
        {"pad_token_id": 10**12},
        {"hidden_act": "nothing"},
        {"hidden_size": 10**12},
        {"hidden_size": "wide"},
        {"num_hidden_layers": [2]},
        {"model_type": 3},
        [1],
        None,
    ],
)
def test_a_config_that_describes_no_model(student: Path, change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = without_hashes(student) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | change if isinstance(change, dict) else change), encoding="utf-8")
    refusal(capsys, student)
