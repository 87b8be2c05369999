"""Stores of teachers that read their own tokens: as live, un-rotated when read, refused where an entry says otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import many
import stores
from kava.cli.main import main
from kava.data.collate import Collator
from kava.data.teacher_texts import TeachersCollator, texts_of, view
from kava.errors import CheckpointError, ConfigError
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.manifest import MANIFEST, read_manifest
from kava.teachers.store import StoredTeacher
from kava.teachers.teacher_set import TeacherSet, load_teacher_set

CPU = torch.device("cpu")
WANTS = TeacherWants(rotary=False, question="mean")
PROMPT = "Think. {question} Now."
TEACHERS = (many.entry("llama", prompt=PROMPT), "gpt2", "neox")


def words(*more: str, teachers: tuple[str, ...] = TEACHERS) -> list[str]:
    return ["extract", "--config", "explicit_embedded", *many.settings(*teachers), "system.device=cpu", *more]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of each teacher, all examples of a split in one shard and read in batches of 4."""
    folder = tmp_path_factory.mktemp("stores")
    for name in ("llama", "gpt2", "neox"):
        where = ["--teacher", name, "--output_dir", str(folder / name), "--batch_size", "4"]
        assert main(words(*where, "--with_question", "--quiet")) == 0
    return folder


def stored_entry(root: Path, name: str, **own: str) -> str:
    given = {"store": root / name, **({"prompt": PROMPT} if name == "llama" else {}), **own}
    return many.entry(name, **given)


@cache
def live() -> TeacherSet:
    return load_teacher_set(many.recipe(*TEACHERS), many.tokenizer("small"), CPU)


def same(found: TeacherKV, wanted: TeacherKV, mask: torch.Tensor, tolerance: float) -> None:
    real = mask[:, None, :, None]
    for mine, theirs in zip([*found.keys, *found.values], [*wanted.keys, *wanted.values], strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs.masked_fill(~real, 0), rtol=0, atol=tolerance)
    torch.testing.assert_close(found.question, wanted.question, rtol=0, atol=tolerance)


def test_stored_is_live(root: Path) -> None:
    """Up to float32's last digits: extraction made other batches. (Bit for bit in its own: test_store.)"""
    stored = load_teacher_set(
        many.recipe(*(stored_entry(root, name) for name in ("llama", "gpt2", "neox"))), many.tokenizer("small"), CPU
    )
    assert stored.shapes == live().shapes
    templates = [[each.template for each in teachers.tokenizations.each] for teachers in (stored, live())]
    assert templates[0] == templates[1]
    rows = stored.tokenizations.student.encode_batch(many.examples()[:8])
    collate = TeachersCollator(Collator(0), stored.tokenizations, texts_of(many.examples()))
    for part in (rows[:4], rows[4:8], [rows[6], rows[1]]):
        batch = collate(part)
        for i, (a, b) in enumerate(zip(stored(batch, WANTS), live()(batch, WANTS), strict=True)):
            same(a, b, view(batch, i)["cot_mask"], 1e-4)


def test_the_manifest_says_how_it_was_read(root: Path) -> None:
    found = read_manifest(root / "llama")
    assert (found.schema, found.own_tokenizer, found.prompt, found.with_question) == (2, True, PROMPT, True)
    assert found.teacher["name"] == many.folder("llama")
    assert found.rotary["inv_freq"] == live().teachers[0].rotary.inv_freq.tolist()
    assert read_manifest(root / "gpt2").rotary is None
    assert len(read_manifest(root / "neox").rotary["inv_freq"]) == 2
    assert main(["extract", "--verify", "--output_dir", str(root / "llama"), "--quiet"]) == 0


def refused(root: Path, entry: str, *more: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_teacher_set(many.recipe(entry, more=more), many.tokenizer("small"), CPU)
    assert error.value.hint
    return error.value.message


def test_an_entry_that_says_otherwise_than_its_store(root: Path) -> None:
    place = str(root / "llama")
    assert "made with the prompt" in refused(root, many.entry("llama", store=place))
    assert "was made by" in refused(root, many.entry("twin", store=place, prompt=PROMPT))
    assert "has bfloat16" in refused(root, many.entry("llama", store=place, prompt=PROMPT, dtype="bfloat16"))
    assert "mixture.rope=auto, not ntk" in refused(
        root, many.entry("llama", store=place, prompt=PROMPT), "mixture.rope=ntk"
    )
    whole = load_teacher_set(
        many.recipe(f"{{name: any, store: '{place}', prompt: '{PROMPT}'}}"), many.tokenizer("small"), CPU
    )  # the store knows its model
    assert whole.shapes[0] == live().shapes[0]


def test_another_tokenizer_than_the_stores(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "llama"
    many.build("llama")[0].save_pretrained(other)
    many.digits().save_pretrained(other)
    entry = f"{{name: llama, model: '{other}', prompt: '{PROMPT}', store: '{root / 'llama'}'}}"
    assert "another tokenizer" in refused(root, entry)


def test_what_was_not_stored_is_not_made_up(root: Path) -> None:
    stored = load_teacher_set(many.recipe(stored_entry(root, "llama")), many.tokenizer("small"), CPU)
    rows = stored.tokenizations.student.encode_batch(many.examples()[:2])
    batch = TeachersCollator(Collator(0), stored.tokenizations, texts_of(many.examples()))(rows)
    with pytest.raises(ConfigError, match="needs the teacher's importance"):
        stored(batch, TeacherWants(importance=True, rotary=False))


def test_a_store_for_one_teacher_does_not_know_its_rotation(tmp_path: Path) -> None:
    stores.make(tmp_path / "s")
    stored = StoredTeacher(tmp_path / "s")
    with pytest.raises(ConfigError, match="does not say how its keys were rotated"):
        stored(stores.batch(stores.texts()[:3]), TeacherWants(rotary=False))
    with pytest.raises(ConfigError, match="needs the teacher's question"):
        stored(stores.batch(stores.texts()[:3]), TeacherWants(question="mean"))
    assert "does not say how its keys" in refused(tmp_path, f"{{name: one, store: '{tmp_path / 's'}'}}")


def test_stores_of_the_first_schema_are_read(tmp_path: Path) -> None:
    """Their shards repeat a manifest without the fields that came later, byte by byte."""
    old = replace(stores.manifest(), schema=1)
    stores.make(tmp_path / "old", old)
    stores.make(tmp_path / "new")
    facts = json.loads((tmp_path / "old" / MANIFEST).read_text())
    assert facts["schema"] == 1
    assert not {"own_tokenizer", "prompt", "rotary", "with_question"} & set(facts)
    batch = stores.batch(stores.texts()[:3])
    found = [StoredTeacher(tmp_path / name)(batch, TeacherWants()) for name in ("old", "new")]
    assert all(torch.equal(a, b) for a, b in zip(found[0].keys, found[1].keys, strict=True))
    facts["schema"] = 3
    (tmp_path / "old" / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="reads up to 2"):
        StoredTeacher(tmp_path / "old")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "the recipe has several teachers"),
        (["--teacher", "bert"], "no teacher is called 'bert'"),
        (["--teacher", "llama", "--prompt", "cot"], "--own_tokenizer and --prompt"),
        (["--teacher", "llama", "--kv_method", "rkv"], "chooses among the student's tokens"),
        (["--teacher", "llama", "--with_cue"], "--with_cue is read by a run with one teacher only"),
    ],
)
def test_the_command_refuses(more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("--output_dir", str(tmp_path / "x"), *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_one_teacher_of_a_plain_recipe_with_its_own_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """teacher.* of the recipe, and a prompt: the same bytes as the entry of a mixture that says so."""
    plain = ["extract", "--config", "explicit_embedded", f"model.name={many.student_folder()}",
             f"teacher.name={many.folder('opt')}", *many.CHAINS, "system.device=cpu", "--splits", "validation"]  # fmt: skip
    assert main([*plain, "--own_tokenizer", "--prompt", "cot", "--output_dir", str(tmp_path / "a"), "--quiet"]) == 0
    entry = many.entry("opt", prompt="cot")
    own = words("--splits", "validation", "--output_dir", str(tmp_path / "b"), teachers=(entry,))
    assert main([*own, "--dry_run"]) == 0
    assert "8 examples x 2 x 3 layers x 3 heads x 8" in capsys.readouterr().out
    assert main(own) == 0
    assert stores.content(tmp_path / "a") == stores.content(tmp_path / "b")
    capsys.readouterr()
    for more, message in (
        (["--with_question"], "--with_question is read by mixtures only"),
        (["--prompt", "cot"], "--prompt without --own_tokenizer"),
        (["--own_tokenizer", "--prompt", "Say it"], "has no {question}"),
        (["--own_tokenizer", "--with_importance"], "gives no importance"),
        (["--teacher", "opt"], "no teacher is called 'opt'"),
    ):
        assert main([*plain, *more, "--output_dir", str(tmp_path / "c")]) == 2
        assert message in capsys.readouterr().err


def test_the_note_names_what_the_recipe_itself_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--teacher", "llama", "--output_dir", str(tmp_path), "--dry_run"]
    assert main(words(*more, "mixture.fusion=similarity")) == 0
    assert "also needs --with_importance --with_question" in capsys.readouterr().out
