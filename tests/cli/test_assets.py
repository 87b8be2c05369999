"""kava assets: what recipes need, fetching from a hub of our own, saying offline what is missing, exporting rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fake_hub
import hub
from kava.backbone.cached import cached, own_copy, weights_problem
from kava.backbone.load import build_model
from kava.cli.main import main
from kava.config import load_recipe
from kava.data import hub as cache
from kava.data.export import export_name, export_train
from kava.data.hub import File, Repo, data_files, elsewhere, missing_parts, model_files, take_shared_store
from kava.data.load import load_file
from kava.data.places import open_set
from kava.errors import DataError
from kava.lab.assets import merged, needed_assets

SMALL, LLAMA, MANY = "Qwen/Qwen2.5-0.5B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", "gpt2"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.build(tmp_path_factory.mktemp("assets"))


def files_of(home: Path, name: str) -> Path:
    return home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / hub.SHA


@pytest.fixture
def online(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.Hub]:
    """A hub with two models and a data set, an empty cache, and a process that may ask."""
    import huggingface_hub

    root = tmp_path / "hub of ours"
    for name in (SMALL, MANY):
        shutil.copytree(files_of(home, name), root / "models" / name)
    for name in ("original/consolidated.00.pth", "tf_model.h5", "consolidated.safetensors"):
        (root / "models" / MANY / name).parent.mkdir(exist_ok=True)
        (root / "models" / MANY / name).write_bytes(b"for other programs" * 100)
    for config in ("main", "socratic"):
        shutil.copytree(home / "datasets" / "gsm8k", root / "datasets" / "openai" / "gsm8k" / config)
    (tmp_path / "work").mkdir()
    hub.enter(tmp_path / "work", monkeypatch)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with fake_hub.serve(root) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield served


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def problems(found: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["problem"] for one in found["assets"] if one["problem"] is not None}


# -- fetching --------------------------------------------------------------------------------------------------------


def test_what_was_fetched_is_found_offline_and_not_fetched_again(
    online: fake_hub.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    words = ["--model", SMALL, MANY, "--dataset", "openai/gsm8k"]
    assert main(["assets", "fetch", *words, "--export_jsonl", "--quiet"]) == 0
    found = result(capsys)
    assert found["fetched"] == [SMALL, MANY, "openai/gsm8k"]
    assert found["exported"] == {"data/gsm8k_train.jsonl": 48}
    names = {name.partition("/resolve/")[2].partition("/")[2] for name in online.got() if "gpt2" in name}
    assert names == {"config.json", "generation_config.json", "model.safetensors", *names}
    assert not names & {"original/consolidated.00.pth", "tf_model.h5", "consolidated.safetensors"}
    assert not [name for name in online.got() if "socratic" in name]
    store = Path("hub") / "models--Qwen--Qwen2.5-0.5B-Instruct"
    assert (store / "refs" / "main").read_text() == online.commit

    first = len(online.got())
    assert main(["assets", "fetch", *words, "--quiet"]) == 0
    assert result(capsys)["fetched"] == []
    assert len(online.got()) == first
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(online.asked)
    assert main(["assets", "verify", *words, "--quiet"]) == 0
    assert [one["place"] for one in result(capsys)["assets"]][2].endswith("main (48 training rows)")
    assert main(["assets", "fetch", *words]) == 0
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert len(online.asked) == asked


def test_one_that_cannot_be_had_stops_no_other(online: fake_hub.Hub, capsys: pytest.CaptureFixture[str]) -> None:
    online.refused["models/" + MANY] = (403, "GatedRepo")
    words = ["--model", MANY, "nobody/nothing", SMALL, "--dataset", "nobody/rows"]
    assert main(["assets", "fetch", *words, "--quiet"]) == 1
    found = result(capsys)
    assert found["fetched"] == [SMALL]
    lacking = problems(found)
    assert set(lacking) == {MANY, "nobody/nothing", "nobody/rows"}
    assert "its licence has to be accepted" in lacking[MANY]
    assert f"{online.url} has no model nobody/nothing" in lacking["nobody/nothing"]


@pytest.mark.parametrize("how", ["refused", "cut"])
def test_a_download_that_breaks_off_leaves_the_old_one_and_goes_on(
    how: str, online: fake_hub.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits before it asks again
    repo, weights = Repo(SMALL, "model"), "model.safetensors"
    old = cache.fetch(cache.plan(repo), progress=False)
    online.commit = "b" * 40
    shutil.copy(online.root / "models" / MANY / weights, online.root / "models" / SMALL / weights)
    if how == "refused":
        online.refused[weights] = (500, "down")
    else:
        online.cut.add(weights)
    assert main(["assets", "fetch", "--model", SMALL, "--quiet"]) == 1
    assert "cannot be fetched from" in capsys.readouterr().err
    assert cache.snapshot(repo) == old
    online.refused.clear()
    online.cut.clear()
    before = len(online.got())
    assert main(["assets", "fetch", "--model", SMALL, "--quiet"]) == 0
    assert {name.rpartition("/")[2] for name in online.got()[before:]} == {weights}
    found = cache.snapshot(repo)
    assert found == old.parent / online.commit
    assert (found / weights).read_bytes() == (online.root / "models" / SMALL / weights).read_bytes()


def test_a_full_disk_is_told_before_the_download(
    online: fake_hub.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    assert main(["assets", "fetch", "--model", SMALL]) == 2
    assert "GB more" in capsys.readouterr().err
    assert online.got() == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to fetch"),
        (["--model", "a/b", "--skip_model"], "--model and --skip_model contradict"),
        (["--dataset", "a/b", "--skip_dataset"], "--dataset and --skip_dataset contradict"),
        (["--model", "a/b", "--export_jsonl"], "--export_jsonl writes a data set"),
        (["--modle", "a/b"], "unknown flag '--modle'"),
        (["--model", "a/b", "training.epochs=2"], "unexpected 'training.epochs=2'"),
        (["--config", "llama1b_augg"], "llama1b_aug"),
    ],
)
def test_mistakes_are_told(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assets", "fetch", *words]) == 2
    assert says in capsys.readouterr().err


def test_one_form_of_the_weights_is_chosen() -> None:
    def names(*given: str) -> list[str]:
        return [file.name for file in model_files([File(name, 1) for name in given])]

    both = ("config.json", "pytorch_model.bin", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = "model.safetensors.index.json"
    assert names(*both, index, "onnx/model.onnx", "README.md") == ["config.json", index, *both[2:]]
    assert names("config.json", "pytorch_model.bin", "vocab.txt") == ["config.json", "vocab.txt", "pytorch_model.bin"]
    assert names("config.json", "model.gguf") == []
    rows = [File(name, 1) for name in (".gitattributes", "README.md", "main/a.parquet", "other/b.parquet")]
    assert [file.name for file in data_files(rows, "main")] == ["README.md", "main/a.parquet"]
    assert [file.name for file in data_files(rows, "nope")] == ["README.md", "main/a.parquet", "other/b.parquet"]


# -- what is needed, and whether it is there ---------------------------------------------------------------------------


def test_what_recipes_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def needed(name: str, *settings: str) -> list[tuple[str, str, str]]:
        return [(one.kind, one.name, one.role) for one in merged(needed_assets(load_recipe(name, list(settings))))]

    assert needed("explicit_embedded") == [
        ("model", "kava:blank", "student"), ("model", "kava:embedded", "teacher"),
        ("data set", "chains", "training, evaluation"),
    ]  # fmt: skip
    assert [one for one in needed("llama1b_aug") if one[0] == "model"] == [("model", LLAMA, "student")]
    assert [name for kind, name, _ in needed("llama1b_aug") if kind == "data set"] == [
        "whynlp/gsm8k-aug", "gsm8k", "gsm8k-hard", "svamp",
    ]  # fmt: skip
    assert [name for kind, name, _ in needed("phase3") if kind == "model"] == [SMALL, MANY, "gpt2-medium", "gpt2-large"]
    assert needed("explicit_hpc")[0][2] == "student, teacher"  # one checkpoint in both roles
    stored = needed("adaptive", "teacher.store=kv_cache/one", "training.start_from=outputs/a")
    assert ("store", "kv_cache/one", "teacher") in stored
    assert ("file", "outputs/a", "training.start_from") in stored


def test_verify_lists_all_that_is_missing_at_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "a b"
    shutil.copytree(home, work, symlinks=True)
    hub.enter(work, monkeypatch)
    assert main(["assets", "verify", "--config", "llama1b_aug", "explicit_hpc"]) == 0
    assert "all 7 are here" in capsys.readouterr().out

    (files_of(work, LLAMA) / "model.safetensors").write_bytes(
        (files_of(work, LLAMA) / "model.safetensors").read_bytes()[:-100]
    )
    (files_of(work, SMALL) / "tokenizer.json").write_text("{")
    shutil.rmtree(work / "hub" / "models--gpt2")
    with (work / "datasets" / "gsm8k-aug" / "train.jsonl").open("a") as file:
        file.write('{"question": "Ann has')
    shutil.rmtree(work / "datasets" / "svamp")
    words = ["--config", "llama1b_aug", "qwen05b_aug", "--model", "gpt2", "./no/such"]
    assert main(["assets", "verify", *words, "--quiet"]) == 1
    lacking = problems(result(capsys))
    assert "model.safetensors is torn" in lacking[LLAMA]
    assert "tokenizer" in lacking[SMALL]
    assert lacking["gpt2"].startswith("not in the hub's cache")
    assert lacking["./no/such"] == "model './no/such': no such folder"
    assert "train.jsonl line 49 is not valid JSON" in lacking["whynlp/gsm8k-aug"]
    assert lacking["svamp"].endswith("nor in ./datasets")
    assert all("\n" not in problem for problem in lacking.values())
    assert main(["assets", "verify", *words]) == 1
    assert "6 of 8 missing" in capsys.readouterr().out


def test_a_copy_in_another_cache_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    hub.enter(tmp_path / "empty", monkeypatch)
    monkeypatch.setenv("HF_HOME", str(home))
    assert elsewhere(Repo(SMALL, "model")) == home / "hub"
    assert f"export HF_HUB_CACHE={home / 'hub'}" in cache.absent(Repo(SMALL, "model"))
    assert elsewhere(Repo("nobody/nothing", "model")) is None


@pytest.mark.parametrize("place", [SMALL, SMALL.rpartition("/")[2]], ids=["org/name", "name"])
def test_a_folder_of_models_stands_in_for_the_hub(
    place: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files_of(home, SMALL), tmp_path / "models of ours" / place)
    (tmp_path / "empty").mkdir()
    hub.enter(tmp_path / "empty", monkeypatch)
    assert main(["assets", "verify", "--model", SMALL, "--quiet"]) == 1
    assert problems(result(capsys))[SMALL].startswith("not in the hub's cache")

    monkeypatch.setenv("KAVA_MODEL_PATH", str(tmp_path / "models of ours"))
    assert main(["assets", "verify", "--model", SMALL, "--quiet"]) == 0
    assert result(capsys)["assets"][0]["place"] == str(tmp_path / "models of ours" / place)
    build_model(load_recipe("qwen05b_aug"))  # the tests refuse every connection
    assert own_copy("nobody/nothing") is None
    assert own_copy(str(tmp_path / "models of ours" / place)) is None  # a path needs no search


def test_a_model_in_the_cache_is_taken_without_asking(
    online: fake_hub.Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fetch(cache.plan(Repo(SMALL, "model")), progress=False)
    asked = len(online.asked)
    recipe = load_recipe("qwen05b_aug")
    build_model(recipe)
    assert len(online.asked) == asked
    folder = cached(SMALL, None)
    assert folder == cache.snapshot(Repo(SMALL, "model"))
    assert cached(SMALL, "other") is None
    assert cached(str(folder), None) is None
    (folder / "tokenizer.json").unlink()
    assert cached(SMALL, None) is None


def test_torn_weights_are_told(tmp_path: Path) -> None:
    assert "there are no weights" in str(weights_problem(tmp_path))
    parts = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    for name in parts[:2]:
        save_file({name: torch.ones(3)}, tmp_path / name)
    assert "there are no weights" in str(weights_problem(tmp_path))  # transformers wants an index of parts
    index = {"weight_map": {name: name for name in parts}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_problem(tmp_path) == f"{parts[2]} is missing"
    save_file({"c": torch.ones(3)}, tmp_path / parts[2])
    assert weights_problem(tmp_path) is None
    (tmp_path / parts[0]).write_bytes((tmp_path / parts[0]).read_bytes()[:-4])
    assert f"{parts[0]} is torn" in str(weights_problem(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "index.json is torn" in str(weights_problem(tmp_path))
    save_file({"all": torch.ones(3)}, tmp_path / "model.safetensors")
    assert weights_problem(tmp_path) is None


def test_a_missing_part_of_a_data_set_is_told(tmp_path: Path) -> None:
    for name in ("train-00000-of-00003.parquet", "train-00002-of-00003.parquet", "test-00001-of-00001.parquet"):
        (tmp_path / name).touch()
    assert missing_parts(tmp_path) == ["train-00001-of-00003.parquet"]


def test_a_shared_store_is_taken_in_either_layout(tmp_path: Path) -> None:
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    (flat / "models--a--b").mkdir(parents=True)
    (nested / "hub" / "models--a--b").mkdir(parents=True)
    for given, wanted in [
        ({"HF_HOME": str(flat)}, str(flat)),
        ({"TRANSFORMERS_CACHE": str(flat)}, str(flat)),
        ({"HF_HOME": str(nested), "TRANSFORMERS_CACHE": str(flat)}, str(flat)),
        ({"HF_HOME": str(nested)}, None),
        ({"HF_HOME": str(flat), "HF_HUB_CACHE": "mine"}, "mine"),
        ({"HF_HOME": str(tmp_path / "nowhere")}, None),
        ({}, None),
    ]:
        take_shared_store(given)
        assert given.get("HF_HUB_CACHE") == wanted


# -- rows as prompt and target -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k-aug", "gsm8k-aug-nl"])
def test_an_exported_set_reads_as_the_set_itself(
    name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.enter(home, monkeypatch)
    path = tmp_path / "rows.jsonl"
    assert export_train(name, None, path, progress=False) == 48
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all({"prompt", "target"} <= row.keys() for row in rows)
    assert all(row["target"].endswith("#### " + p["answer"]) for row, p in zip(rows, hub.problems(48), strict=True))
    opened = open_set(name)
    for cot_type in ("equation", "natural_language"):
        if opened.source.cot_type not in (None, cot_type):
            continue
        wanted = [opened.source.parse(row, where, cot_type) for where, row in opened.splits["train"]]
        assert [(e.question, e.steps, e.answer) for e in load_file(path, cot_type)] == wanted


def test_gsm8k_keeps_its_solutions_word_for_word(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.enter(home, monkeypatch)
    export_train("openai/gsm8k", "main", tmp_path / "rows.jsonl", progress=False)
    source = [json.loads(line) for line in (home / "datasets/gsm8k/train.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": row["question"], "target": row["answer"]} for row in source]


def test_a_torn_source_writes_nothing(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "gsm8k"
    shutil.copytree(home / "datasets" / "gsm8k", source)
    whole = (source / "train.jsonl").read_bytes()
    out = tmp_path / "out.jsonl"
    out.write_text("as it was")
    for torn, says in [
        (whole[:-30], "line 48 is not valid JSON"),
        (whole.replace(b"#### ", b"", 1), "line 1: field 'answer' has no final answer"),
        (b"", "the train split is empty"),
    ]:
        (source / "train.jsonl").write_bytes(torn)
        with pytest.raises(DataError, match=says):
            export_train(str(source), None, out, progress=False)
    (source / "train.jsonl").unlink()
    with pytest.raises(DataError, match="no train split; it has test"):
        export_train(str(source), None, out, progress=False)
    assert out.read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".partial")] == []


def test_exported_files_are_named_after_set_and_configuration() -> None:
    assert export_name("openai/gsm8k", "main") == "gsm8k_main_train.jsonl"
    assert export_name("openai/gsm8k", None) == "gsm8k_train.jsonl"
    assert export_name("my data/rows.jsonl", None) == "rows_train.jsonl"
