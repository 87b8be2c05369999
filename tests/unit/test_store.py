"""A teacher store gives back what the teacher gave, is written whole or not at all, and knows its own damage."""

from __future__ import annotations

import errno
import json
import pickle
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import explicit
import stores
from kava.compress import Samples, make_compressor
from kava.config import load_recipe
from kava.data.example import stable_hash
from kava.errors import CheckpointError, ConfigError, DataError, RunError
from kava.files import PARTIAL, sole_owner
from kava.teachers import extract as work
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.extract import shard_bytes, stored_columns
from kava.teachers.shards import Shard, ShardWriter, Torn, shard_name
from kava.teachers.store import INDEX, StoredTeacher, verify
from stores import BATCH, LENGTHS, PER_SHARD, batch, content, make, manifest, teacher, texts

ALL = TeacherWants(importance=True, cue=True)
EVERYTHING = {"with_importance": True, "with_cue": True}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "raw"
    make(folder, manifest(**EVERYTHING))
    return folder


@pytest.fixture
def copied(raw: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(raw, tmp_path / "copy"))


def shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("kv-*"))[number]


def real(entries: Tensor, mask: Tensor) -> Tensor:
    """entries [B, H, N, ...] with zeros at the columns that are not in mask [B, N]."""
    return entries.masked_fill(~mask[:, None].reshape(len(mask), 1, -1, *[1] * (entries.ndim - 3)), 0)


def same(found: TeacherKV, live: TeacherKV, mask: Tensor) -> None:
    """Bit for bit at the columns of the mask, zero elsewhere."""
    for mine, theirs in ((found.keys, live.keys), (found.values, live.values), (found.importance, live.importance)):
        assert (mine is None) == (theirs is None)
        for a, b in zip(mine or [], theirs or [], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, real(b, mask))
    assert (found.cue is None) == (live.cue is None)
    assert found.cue is None or torch.equal(found.cue, live.cue)


# -- what comes back -------------------------------------------------------------------------------------------------


def batches() -> list[list[Any]]:
    """As extraction makes them: longest first, never across shards."""
    rows = texts()
    shards = [sorted(rows[i : i + PER_SHARD], key=lambda row: -len(row)) for i in range(0, len(rows), PER_SHARD)]
    return [one[i : i + BATCH] for one in shards for i in range(0, len(one), BATCH)]


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "gpt2"])
def test_stored_is_live_bit_for_bit(family: str, tmp_path: Path) -> None:
    live = teacher(family)
    make(tmp_path / "s", manifest(taught_by=live, **EVERYTHING), live)
    stored = StoredTeacher(tmp_path / "s")
    assert stored.shape == live.shape
    for rows in batches():
        given = batch(rows)
        same(stored(given, ALL), live(given, ALL), given["cot_mask"])
        only_kv = stored(given, TeacherWants())
        assert only_kv.importance is only_kv.cue is only_kv.only is None


def test_the_teacher_reads_rows_of_like_lengths_and_each_is_stored_in_its_place(tmp_path: Path) -> None:
    read: list[list[int]] = []

    def spy(given: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        read.append(sum(given[f"{part}_mask"].sum(1) for part in ("question", "cot", "tail")).tolist())
        return teacher()(given, wants)

    make(tmp_path, taught_by=spy)
    assert read == [[len(row) for row in rows] for rows in batches()]
    stored = StoredTeacher(tmp_path)
    for row in texts():
        alone = batch([row])
        for a, b in zip(stored(alone, TeacherWants()).keys, teacher()(alone, TeacherWants()).keys, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_any_batch_and_any_padding(raw: Path) -> None:
    stored, rows = StoredTeacher(raw), texts()
    for side in ("left", "right"):
        mixed = [rows[i] for i in (13, 1, 7, 0, 6)]
        given = batch(mixed, side)
        found, live = stored(given, ALL), teacher()(given, ALL)
        for a, b in zip([*found.keys, *found.values], [*live.keys, *live.values], strict=True):
            torch.testing.assert_close(a, real(b, given["cot_mask"]), rtol=1e-5, atol=1e-5)
        for b, one in enumerate(mixed):
            alone = stored(batch([one]), ALL)
            assert torch.equal(found.keys[1][b, :, given["cot_mask"][b]], alone.keys[1][0])
            assert torch.equal(found.cue[b], alone.cue[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_are_the_rounded_numbers(dtype: str, tmp_path: Path) -> None:
    make(tmp_path, manifest(dtype=dtype, **EVERYTHING))
    assert verify(tmp_path, progress=False) == []
    kind = getattr(torch, dtype)
    for rows in batches():
        given = batch(rows)
        found, live = StoredTeacher(tmp_path)(given, ALL), teacher()(given, ALL)
        rounded = TeacherKV(
            [k.to(kind) for k in live.keys], [v.to(kind) for v in live.values], live.importance, live.cue.to(kind)
        )
        same(found, rounded, given["cot_mask"])


@pytest.mark.parametrize("method", ["rkv", "rkv_original", "crop", "steps", "uniform"])
def test_compressed_keeps_one_choice_per_sample(method: str, tmp_path: Path) -> None:
    compressor = make_compressor(method)
    what = manifest(method, with_importance=compressor.needs_importance)
    make(tmp_path, what)
    stored = StoredTeacher(tmp_path)
    for rows in batches():
        given = batch(rows)
        wants = TeacherWants(importance=compressor.needs_importance)
        live, found = teacher()(given, wants), stored(given, wants)
        samples = Samples(given["example_id"], given["cot_result"])
        index, kept = compressor.choose(live.keys, live.values, live.importance, given["cot_mask"], 4, samples)
        only = torch.zeros_like(given["cot_mask"])
        for b in range(len(rows)):
            only[b, index[b, 0][kept[b, 0]]] = True
        assert torch.equal(found.only, only)
        same(found, live, only)


def test_sizes_are_known_beforehand(tmp_path: Path) -> None:
    for method in ("raw", "steps"):
        what = manifest(method, **EVERYTHING)
        make(tmp_path / method, what)
        sizes = shard_bytes(what, stored_columns(texts(), what))
        for path, size in zip(sorted((tmp_path / method).glob("kv-*")), sizes, strict=True):
            head = int.from_bytes(path.read_bytes()[:8], "little")
            assert path.stat().st_size == 8 + head + size


def test_shards_are_ordinary_safetensors(raw: Path) -> None:
    together = next(rows for rows in batches() if "set/train/7" in [row.id for row in rows])
    place = [row.id for row in together].index("set/train/7")
    live = teacher()(batch(together), ALL)
    with safe_open(shard(raw, 1), "pt") as file:
        assert sorted(file.keys()) == sorted(
            f"{n}.{p}" for n in range(5, 10) for p in ("k", "v", "columns", "importance", "cue")
        )
        assert torch.equal(file.get_tensor("7.k"), torch.stack(live.keys, 1)[place, :, :, : LENGTHS[7]])
        assert file.get_tensor("7.columns").tolist() == list(range(LENGTHS[7]))
        assert set(file.metadata()) == {"kava"}
        assert json.loads(file.metadata()["kava"])["examples"][2][0] == "set/train/7"


@pytest.mark.parametrize("settings", [explicit.HEAD, (*explicit.UP, "loss.alpha1_codi=2")])
def test_a_training_step_is_the_same_from_the_store(settings: tuple[str, ...], raw: Path) -> None:
    """One step live and one stored: every term, count and gradient, bit for bit."""
    student = explicit.student(stores.LLAMA, torch.float32)
    given = batch(batches()[0])
    live, stored = (
        explicit.measure(explicit.objective(student, one, *settings), [given])
        for one in (teacher(), StoredTeacher(raw))
    )
    assert live[0] == stored[0]
    assert all(torch.equal(grad, stored[1][name]) for name, grad in live[1].items())


# -- whole or not at all ---------------------------------------------------------------------------------------------


def test_array_tasks_make_what_one_run_makes(raw: Path, tmp_path: Path) -> None:
    done = [make(tmp_path, manifest(**EVERYTHING), task=(i, 2)) for i in (1, 0)]
    assert [(one.written, one.kept, one.missing) for one in done] == [(1, 0, 2), (2, 0, 0)]
    assert content(tmp_path) == content(raw)


def test_starting_again_writes_only_what_is_missing(copied: Path) -> None:
    before, untouched = content(copied), shard(copied, 0).stat().st_mtime_ns
    shard(copied, 2).unlink()
    (copied / INDEX).unlink()
    torn = shard(copied, 1)
    torn.write_bytes(torn.read_bytes()[:-9])
    left = copied / f"{PARTIAL}{torn.name}-abc"
    left.write_bytes(b"half")
    (copied / f"{PARTIAL}xyz").write_text("half an index")
    done = make(copied, manifest(**EVERYTHING))
    assert (done.written, done.kept, done.missing) == (2, 1, 0)
    assert content(copied) == before
    assert shard(copied, 0).stat().st_mtime_ns == untouched
    assert make(copied, manifest(**EVERYTHING)).written == 0


def test_other_tasks_leftovers_are_theirs(tmp_path: Path) -> None:
    what = manifest()
    names = [f"{PARTIAL}{shard_name(what, k)}-abc" for k in (0, 1)]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    make(tmp_path, what, task=(1, 2))
    assert [(tmp_path / name).exists() for name in names] == [True, False]


def test_one_task_at_a_time(tmp_path: Path) -> None:
    with sole_owner(tmp_path / ".lock-0-of-1"), pytest.raises(RunError, match="another process"):
        make(tmp_path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes from the thread that writes; what was finished before stays."""
    finish, calls = ShardWriter.finish, []

    def full(self: ShardWriter) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        finish(self)

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "finish", full)
        with pytest.raises(OSError, match="No space left"):
            make(tmp_path, manifest(**EVERYTHING))
    assert [path.name for path in sorted(tmp_path.iterdir()) if not path.name.startswith(".lock")] == [
        shard(raw, 0).name, "manifest.json"
    ]  # fmt: skip
    make(tmp_path, manifest(**EVERYTHING))
    assert content(tmp_path) == content(raw)


def test_a_file_size_limit_leaves_nothing_half_written(tmp_path: Path, raw: Path) -> None:
    """The system's own refusal, in the middle of a shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = shard(raw, 0).stat().st_size - 4000
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(OSError, match="File too large"):
            make(tmp_path, manifest(**EVERYTHING))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(content(tmp_path)) == ["manifest.json"]


def test_too_little_disk_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(work.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match="3 shards still need"):
        make(tmp_path, taught_by=lambda *_: pytest.fail("read all the same"))


def test_a_teachers_error_ends_the_run(tmp_path: Path) -> None:
    calls: list[int] = []

    def broken(given: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        calls.append(1)
        if len(calls) == 4:
            raise ValueError("the device is gone")
        return teacher()(given, wants)

    with pytest.raises(ValueError, match="the device is gone"):
        make(tmp_path, taught_by=broken)
    assert sorted(content(tmp_path))[1:] == ["manifest.json"]


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e6), ("float32", float("nan"))])
def test_numbers_that_do_not_fit_are_refused(dtype: str, value: float, tmp_path: Path) -> None:
    def wild(given: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        seen = teacher()(given, wants)
        for row in (given["example_id"] == stable_hash("set/train/6")).nonzero():
            seen.values[1][row, 0, 2, 3] = value
        return seen

    with pytest.raises(RunError, match=f"set/train/6: .* not finite in {dtype}"):
        make(tmp_path, manifest(dtype=dtype), wild)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [shard_name(manifest(), 0)]


# -- damage ----------------------------------------------------------------------------------------------------------


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    what = manifest("crop", 2, target_len=1, **EVERYTHING)
    make(tmp_path, what)
    path = shard(tmp_path, 0)
    good = path.read_bytes()

    def read() -> None:
        found = Shard(tmp_path, what, 0)
        for row in range(2):
            found.read(row)

    read()
    for place in range(0, len(good), 13):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=path.name):
            read()


def test_damage_is_named_when_reading_and_by_verify(copied: Path) -> None:
    path = shard(copied, 1)
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    assert verify(copied, progress=False) == [
        f"{path} is damaged: example set/train/9 does not have the hash it was written with"
    ]
    stored, rows = StoredTeacher(copied), texts()
    stored(batch(rows[:5]), ALL)
    stored(batch(rows[5:9]), ALL)
    with pytest.raises(Torn, match="set/train/9"):
        stored(batch(rows[7:10]), ALL)


@pytest.mark.parametrize("size", [0, 7, 8, 200, 5000, -1])
def test_a_truncated_shard_is_named(copied: Path, size: int) -> None:
    path = shard(copied, 2)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Torn, match=rf"{path.name} is (torn|damaged)"):
        StoredTeacher(copied)(batch(texts()[10:12]), ALL)
    assert any(path.name in line for line in verify(copied, progress=False))


def test_another_teachers_shard_is_refused(copied: Path, tmp_path: Path) -> None:
    other = teacher(seed=5)
    with pytest.raises(CheckpointError, match=r"teacher\.weights is .* here, .* there"):
        make(copied, manifest(taught_by=other, **EVERYTHING), other)
    make(tmp_path / "other", manifest(taught_by=other, **EVERYTHING), other)
    shutil.copy(shard(tmp_path / "other", 1), shard(copied, 1))
    with pytest.raises(CheckpointError, match=rf"{shard(copied, 1).name} belongs to another .* teacher\.weights"):
        StoredTeacher(copied)(batch(texts()[5:7]), ALL)
    assert "teacher.weights" in verify(copied, progress=False)[0]
    with pytest.raises(CheckpointError, match="belongs to another teacher store"):
        make(copied, manifest(**EVERYTHING))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("dtype", "bfloat16", "dtype is 'float32' here, 'bfloat16' there"),
        ("with_cue", False, "with_cue is True here"),
        ("tokenizer", "u", "tokenizer is"),
        ("data", {"name": "set", "sha256": "1"}, r"data\.sha256 is None here, '1' there"),
        ("examples_per_shard", 4, "examples_per_shard"),
    ],
)
def test_a_store_is_never_mixed(field: str, value: Any, said: str, copied: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        make(copied, manifest(**{**EVERYTHING, field: value}))
    make(copied, manifest(**EVERYTHING, versions={"torch": "9"}))  # these may differ


def test_a_lost_index_is_no_loss(copied: Path) -> None:
    given = batch(texts()[4:9])
    wanted = StoredTeacher(copied)(given, ALL)
    for damage in (Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text('{"hashes": [1]}')):
        damage(copied / INDEX)
        found = StoredTeacher(copied, progress=False)(given, ALL)
        assert all(torch.equal(a, b) for a, b in zip(found.keys, wanted.keys, strict=True))
        assert "index.json" in verify(copied, progress=False)[0]
    make(copied, manifest(**EVERYTHING))


def test_a_lost_manifest_is_written_again(copied: Path) -> None:
    before = content(copied)
    (copied / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        StoredTeacher(copied)
    assert make(copied, manifest(**EVERYTHING)).kept == 3
    assert content(copied) == before
    (copied / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        StoredTeacher(copied)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        make(tmp_path)


# -- asking for what is not there ------------------------------------------------------------------------------------


def test_an_unfinished_store_is_refused(copied: Path) -> None:
    shard(copied, 1).unlink()
    with pytest.raises(CheckpointError, match="1 of 3 shards are missing, the first is kv-00001-of-00003"):
        StoredTeacher(copied)


def test_unknown_examples_and_other_texts_are_named(raw: Path) -> None:
    stored, rows = StoredTeacher(raw), texts()
    with pytest.raises(DataError, match="has no example"):
        stored(batch([replace(rows[0], id="set/train/99")]), ALL)
    with pytest.raises(DataError, match=r"set/train/3 .* have 8 tokens, 9 in the store"):
        stored(batch([replace(rows[3], cot=rows[3].cot[1:], result=rows[3].result[1:])]), ALL)
    for field in ("question", "cot", "answer"):
        moved = replace(rows[3], **{field: [token + 1 for token in getattr(rows[3], field)]})
        with pytest.raises(DataError, match=r"set/train/3 .* have other tokens"):
            stored(batch([moved]), ALL)


def test_what_the_store_lacks_is_named_with_its_flag(tmp_path: Path) -> None:
    make(tmp_path)
    stored = StoredTeacher(tmp_path)
    for what in ("importance", "cue"):
        with pytest.raises(ConfigError, match=f"teacher's {what}") as caught:
            stored(batch(texts()[:2]), TeacherWants(**{what: True}))
        assert f"--with_{what}" in (caught.value.hint or "")


def test_a_compressed_store_serves_its_own_recipe_only(tmp_path: Path, raw: Path) -> None:
    make(tmp_path, manifest("rkv", with_importance=True))
    stored = StoredTeacher(tmp_path)
    stored.check_recipe(load_recipe("explicit_embedded", ["explicit.target_len=4", "rkv.method=rkv"]))
    for settings, said in (
        (["explicit.target_len=5"], "holds 4 columns"),
        (["explicit.target_len=4", "rkv.method=crop"], "Crop"),
        (["explicit.target_len=4", "rkv.lambda=0.2"], "0.2"),
        (["explicit.target_len=4", "explicit.choose=head", "projector.direction=none"], "one choice per sample"),
        (["explicit.target_len=4", "explicit.cka_weight=0.1"], "CKA"),
    ):
        recipe = load_recipe("explicit_embedded", settings)
        with pytest.raises(ConfigError, match=said):
            stored.check_recipe(recipe)
        StoredTeacher(raw).check_recipe(recipe)


def test_another_process_opens_its_own_files(raw: Path) -> None:
    stored, given = StoredTeacher(raw), batch(texts()[:3])
    wanted = stored(given, ALL)
    found = pickle.loads(pickle.dumps(stored))(given, ALL)
    assert torch.equal(found.keys[0], wanted.keys[0])
