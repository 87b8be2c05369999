"""kava push to a hub of our own, and students that are loaded from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fake_hub
import hub
from kava import Student
from kava.cli.main import main
from kava.errors import CheckpointError, ConfigError
from kava.infer.checkpoint import is_hub_name
from kava.share.push import push

TOKEN, REPO = "hf_abcdefghijklmnopqrstuvwxyz", "ann/student"
QUESTIONS = ["3+4?", "9-2*2?", "5+5+1?"]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = hub.tiny_student(tmp_path_factory.mktemp("runs") / "seed_1" / "best_checkpoint")
    (folder / "optimizer.pt").write_bytes(b"training state stays here")
    return folder


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.Hub]:
    """An empty hub of which this process has a token, and an empty cache."""
    import huggingface_hub

    (tmp_path / "work").mkdir()
    (tmp_path / "hub of ours").mkdir()
    hub.enter(tmp_path / "work", monkeypatch)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no tokens"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with fake_hub.serve(tmp_path / "hub of ours") as served:
        served.tokens[TOKEN] = "ann"
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        if hasattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE"):  # older versions have a copy of it
            monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        new_sessions()
        yield served
    new_sessions()


def new_sessions() -> None:
    """For older versions of the hub's library, whose sessions know from their start whether there is a network."""
    import huggingface_hub

    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


def content(online: fake_hub.Hub, repo: str = REPO) -> dict[str, bytes]:
    folder = online.root / "models" / repo
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a push that is refused says: one line and a hint, without the token."""
    assert main(["push", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert TOKEN not in captured.err
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") <= 2
    return captured.err


def test_a_round_trip_gives_the_same_answers(student, online, capsys):
    assert main(["push", str(student), REPO]) == 0
    said = capsys.readouterr().out
    assert f"{online.url}/{REPO} (private)" in said
    assert TOKEN not in said
    uploaded = content(online)
    listed = json.loads((student / "kava.json").read_text())["files"]
    assert set(uploaded) == {".gitattributes", "README.md", "kava.json", *listed}
    assert {name: data for name, data in uploaded.items() if name in listed} == {
        n: (student / n).read_bytes() for n in listed
    }
    assert online.messages == ["Upload a student with kava"]
    assert online.private == {REPO: True}
    expected = [a.text for a in Student.from_pretrained(student).answer(QUESTIONS)]
    loaded = Student.from_pretrained(REPO)
    assert [a.text for a in loaded.answer(QUESTIONS)] == expected
    assert main(["infer", "--checkpoint", REPO, "--questions", *QUESTIONS, "--quiet"]) == 0
    assert [row["answer"] for row in json.loads(capsys.readouterr().out)] == expected
    words = ["evaluate", "--checkpoint", REPO, "--limit", "3", "--quiet"]
    assert main(words) == 2
    assert "give --output FOLDER" in capsys.readouterr().err
    assert main([*words, "--output", "here"]) == 0
    assert Path("here/results_chains.limit3.yaml").is_file()


def test_serve_and_lens_take_a_name_of_the_hub(student, online, capsys, monkeypatch):
    pytest.importorskip("fastapi", reason="needs the server: pip install 'kava[serve]'")
    from kava.serve import server

    started = []
    monkeypatch.setattr(server, "serve", lambda service, sock, *rest: started.append(service))
    push(student, REPO, revision="v2", progress=False)
    assert main(["serve", REPO, "--revision", "v2", "--port", "0", "--device", "cpu"]) == 0
    assert main(["serve", str(student), "--port", "0", "--device", "cpu"]) == 0
    assert [service.model_name for service in started] == [REPO, "best_checkpoint"]
    assert online.root not in started[0].student.folder.parents
    capsys.readouterr()
    reports = []
    for words in ([REPO, "--revision", "v2"], [str(student)]):
        assert main(["lens", *words, "--questions", *QUESTIONS, "--quiet"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["questions"] == reports[1]["questions"]
    for verb in ("serve", "lens"):
        more = ["--questions", "1?"] if verb == "lens" else []
        assert main([verb, "bob/none", *more]) == 2
        assert "as a student of the hub" in capsys.readouterr().err
        assert main([verb, str(student), "--revision", "v2", *more]) == 2
        assert "has no effect on the folder" in capsys.readouterr().err


def test_offline_the_caches_copy_is_used(student, online, monkeypatch, capsys):
    import huggingface_hub

    push(student, REPO, progress=False)
    first = Student.from_pretrained(REPO).folder
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(online.asked)
    assert Student.from_pretrained(REPO).folder == first
    assert len(online.asked) == asked
    with pytest.raises(CheckpointError, match="does not exist; as a student of the hub it is not in the hub's cache"):
        Student.from_pretrained("ann/other")


def test_a_second_push_replaces_the_first_and_keeps_what_a_user_added(student, online, capsys):
    push(student, REPO, progress=False)
    folder = online.root / "models" / REPO
    for name in ("LICENSE", "shards/__0_0.distcp", "old.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    other = hub.tiny_student(student.parent.parent / "other" / "best_checkpoint", ["latent.num_tokens=2"])
    result = push(other, REPO, progress=False, private=False)
    assert sorted(result.removed) == ["old.safetensors", "shards/__0_0.distcp"]
    assert result.private is True  # as it was
    assert content(online)["LICENSE"] == b"x"
    assert content(online)["trained.safetensors"] == (other / "trained.safetensors").read_bytes()
    assert Student.from_pretrained(REPO).model.latent.num_tokens == 2


def test_revisions_are_branches(student, online, capsys):
    loaded = Student.from_pretrained(student)
    loaded.push_to_hub(REPO, progress=False, private=False)
    main_before = content(online)
    result = loaded.push_to_hub(REPO, revision="v2", licence="apache-2.0", progress=False)
    assert content(online) == main_before
    assert b"license: apache-2.0" in content(online, f"{REPO}@v2")["README.md"]
    assert Student.from_pretrained(REPO, revision="v2").folder.name == result.commit
    with pytest.raises(CheckpointError, match="no revision v3"):
        Student.from_pretrained(REPO, revision="v3")
    with pytest.raises(ConfigError, match="has no effect on the folder"):
        Student.from_pretrained(student, revision="v2")


def test_a_dry_run_asks_nothing(student, online, capsys):
    assert main(["push", str(student), REPO, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "trained.safetensors" in said
    assert "nothing was uploaded" in said
    assert online.asked == []
    assert not (student / "README.md").exists()


BAD_NAMES = (
    "student", "a/b/c", "/ann/x", "ann/", "ann/a b", "ann/..", "ann/x.git", "ann/x--y", "ann/\x1b", "ann/" + "x" * 99,
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_malformed_name(student, online, capsys, name):
    assert "is no name of a repository" in refused(capsys, student, name)
    assert online.asked == []


def test_tokens(student, online, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    assert "does not accept the token" in refused(capsys, student, REPO)
    monkeypatch.delenv("HF_TOKEN")
    assert "no token of the hub" in refused(capsys, student, REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "may not write to bob/x" in refused(capsys, student, "bob/x")
    assert list((online.root).glob("models/*/*")) == []


def test_what_kava_did_not_upload_stays(student, online, capsys):
    folder = online.root / "models" / REPO
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"of another program")
    assert "files that kava did not upload, such as model.bin" in refused(capsys, student, REPO)
    assert content(online) == {"model.bin": b"of another program"}
    assert main(["push", str(student), REPO, "--overwrite"]) == 0
    assert content(online)["model.bin"] == b"of another program"


@pytest.mark.parametrize("part", ["lfs/", "/commit/", "/preupload/", "validate-yaml"])
def test_a_push_that_breaks_off_leaves_the_branch_as_it_was(student, online, capsys, part, monkeypatch):
    push(student, REPO, progress=False)
    before, head = content(online), dict(online.heads)
    other = hub.tiny_student(student.parent.parent / f"other {len(part)}" / "best_checkpoint", ["latent.num_tokens=3"])
    online.refused[part] = (400, "BadRequest")
    said = refused(capsys, other, REPO)
    assert "nothing was committed: the branch is as it was; run the command again" in said
    assert (content(online), online.heads) == (before, head)
    online.refused.clear()
    assert main(["push", str(other), REPO]) == 0
    assert content(online)["trained.safetensors"] == (other / "trained.safetensors").read_bytes()


def test_interrupted_in_the_middle(student, online, capfd, monkeypatch):
    from huggingface_hub import HfApi

    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(HfApi, "create_commit", interrupted)
        assert main(["push", str(student), REPO]) == 130
    assert "nothing was committed" in capfd.readouterr().err
    assert set(content(online)) == {".gitattributes"}
    assert main(["push", str(student), REPO]) == 0


def test_a_branch_that_moved_meanwhile(student, online, capsys):
    online.refused["/commit/"] = (412, "")
    assert "was changed while it was written to" in refused(capsys, student, REPO)


def test_no_network(student, online, capsys, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    assert "cannot be uploaded to http://127.0.0.1:9" in refused(capsys, student, REPO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    new_sessions()
    assert "HF_HUB_OFFLINE is set" in refused(capsys, student, REPO)


def test_what_is_no_student_is_not_uploaded(student, online, capsys, tmp_path):
    assert "does not exist" in refused(capsys, tmp_path / "missing", REPO)
    torn = tmp_path / "torn"
    shutil.copytree(student, torn)
    (torn / "trained.safetensors").write_bytes(b"short")
    assert "sha256 differs" in refused(capsys, torn, REPO)
    assert online.asked == []


def test_a_file_that_the_hub_changed_is_refused(student, online):
    push(student, REPO, progress=False)
    path = online.root / "models" / REPO / "recipe.yaml"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml is not the file that was saved"):
        Student.from_pretrained(REPO)


def test_other_repositories_are_no_students(student, online):
    kinds = {"plain": ("config.json", "model of transformers"), "merged": ("kava_export.json", "merged folder")}
    for name, (file, said) in (kinds | {"odd": ("x.txt", "has no kava.json")}).items():
        folder = online.root / "models" / "ann" / name
        folder.mkdir(parents=True)
        (folder / file).write_text("{}")
        with pytest.raises(CheckpointError, match=said):
            Student.from_pretrained(f"ann/{name}")
    with pytest.raises(
        CheckpointError, match=r"checkpoint bob/none does not exist; as a student of the hub: .* has no model bob/none"
    ):
        Student.from_pretrained("bob/none")


def test_a_path_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    names = {"ann/x": True, "run/best_checkpoint": False, "run/checkpoint-ep1": False, "outputs/x": False, "x": False,
             "./ann/x": False, "/ann/x": False, "a/b/c": False}  # fmt: skip
    names.pop("./ann/x")  # pathlib drops the dot
    assert {name: is_hub_name(name) for name in names} == names


def test_the_merged_form(student, online, capsys):
    """The folder of kava export, with a card of its own; no student any more."""
    push(student, REPO, progress=False)
    words = ["push", str(student), REPO, "--merged"]
    assert main([*words, "--dry_run"]) == 0
    assert main(words) == 0
    uploaded = content(online)
    assert {"model.safetensors", "kava_export.json", "custom_generate/generate.py"} <= set(uploaded)
    assert not {"kava.json", "recipe.yaml", "trained.safetensors"} & set(uploaded)
    assert hashlib.sha256(uploaded["custom_generate/generate.py"]).hexdigest() in uploaded["README.md"].decode()
    with pytest.raises(CheckpointError, match="merged folder and no student"):
        Student.from_pretrained(REPO)
    assert main([*words, "--dtype", "bfloat16"]) == 0
    smaller = content(online)
    assert json.loads(smaller["kava_export.json"])["dtype"] == "bfloat16"
    assert len(smaller["model.safetensors"]) < 0.6 * len(uploaded["model.safetensors"])
    assert "stored in float32" in uploaded["README.md"].decode()
    assert "stored in bfloat16" in smaller["README.md"].decode()
    capsys.readouterr()
    assert "dtype cannot be heeded" in refused(capsys, student, REPO, "--dtype", "bfloat16")


@pytest.mark.long
def test_a_new_process_answers_alike(student, online, tmp_path):
    push(student, REPO, progress=False)
    expected = [a.text for a in Student.from_pretrained(student).answer(QUESTIONS)]
    code = f"from kava import Student; print([a.text for a in Student.from_pretrained({REPO!r}).answer({QUESTIONS!r})])"
    environ = dict(
        os.environ, HF_ENDPOINT=online.url, HF_HOME=str(tmp_path / "home"), HF_HUB_CACHE=str(tmp_path / "cache")
    )
    environ |= {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(expected)
