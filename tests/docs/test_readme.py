"""README.md and its translation: every block runs, in order, as it stands, on tiny models under the real names."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import hub
from kava.backbone.families import FAMILIES
from kava.cli import main as cli
from kava.data.load import load_file

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "README.zh-CN.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- test: skip because (?P<reason>[^>]+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def blocks(page: Path, *kinds: str) -> list[str]:
    """The fenced blocks of these kinds, in order; a block behind <!-- test: skip because ... --> is left out."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [match["text"] for match in found if match["kind"] in kinds and not match["reason"]]


def commands(block: str) -> Iterator[list[str]]:
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the hub in miniature and the shipped data; the blocks below build on each other in it."""
    root = hub.build(tmp_path_factory.mktemp("readme"))
    shutil.copytree(ROOT / "data", root / "data", dirs_exist_ok=True)
    return root


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return hub.enter(home, monkeypatch)


def quick(words: list[str]) -> list[str]:
    """A command that ends in seconds; a training writes to the folder that it would write to without --quick_test."""
    if words[0] == "extract":
        return [*words, "dataset.generator.train_size=16"]
    if words[0] not in ("train", "distill"):
        return words
    folder = []
    if "--output_dir" not in words:
        recipe, seed = (words[words.index(flag) + 1] for flag in ("--config", "--seed"))
        folder = ["--output_dir", f"outputs/{recipe}_seed_{seed}"]
    return [*words, "--quick_test", *folder, "system.num_workers=0"]  # loader processes cost seconds each


def kava(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ann has 3 apples. How many?\n/latent off\n/quit\n"))
    assert cli.main(quick(words)) == 0, f"kava {shlex.join(words)}"


def make(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The target exists; what it does is tried elsewhere."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def pip(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The extras exist."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    wanted = re.findall(r"[\w-]+", re.search(r"\[(.*)\]", words[-1]).group(1))
    assert wanted
    assert set(wanted) <= set(re.findall(r"^([\w-]+) = ", table, re.M))


PROGRAMS: dict[str, Callable[[list[str], pytest.MonkeyPatch], None]] = {"kava": kava, "make": make, "pip": pip}
BLOCKS = [(kind, text) for kind in ("bash", "python") for text in blocks(README, kind)]
ORDERED = sorted(BLOCKS, key=lambda block: README.read_text(encoding="utf-8").index(block[1]))


def test_every_block_runs_in_order(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, text in ORDERED:
        if kind == "python":
            exec(compile(text, str(README), "exec"), {})
            assert re.fullmatch(r".* \d+ (True|False)", capsys.readouterr().out.strip().splitlines()[-1])
            continue
        for program, *words in commands(text):
            PROGRAMS[program](words, monkeypatch)
    run = here / "outputs" / "llama1b_aug_seed_42"
    named = ("recipe.yaml", "meta.json", "data_card.json", "train.log", "log.jsonl", "best_checkpoint")
    assert [name for name in named if not (run / name).exists()] == []
    assert (here / "outputs" / "routed" / "routing.jsonl").is_file()
    for name in ("gsm8k", "gsm8k-hard", "svamp"):
        results = yaml.safe_load((run / f"results_{name}.yaml").read_text(encoding="utf-8"))
        assert results["total"] == hub.TEST_ROWS
        assert len((run / f"predictions_{name}.jsonl").read_text(encoding="utf-8").splitlines()) == hub.TEST_ROWS


def test_its_rows_are_read_as_data(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(blocks(README, "json")), encoding="utf-8")
    examples = load_file(file)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [list(example.steps) for example in examples] == [row.get("steps", []) for row in rows]
    assert [example.answer for example in examples] == ["36", "7"]


def test_the_translation_has_the_same_blocks_numbers_and_links() -> None:
    def facts(page: Path) -> tuple[list[str], list[list[str]], list[str]]:
        text = page.read_text(encoding="utf-8")
        table = [re.findall(r"\d+\.\d+", line) for line in text.splitlines() if re.match(r"\| (Qwen|Llama)", line)]
        links = [target for target, _ in LINK.findall(text) if not target.startswith("README")]
        return [match["text"] for match in BLOCK.finditer(text)], table, links

    assert facts(README) == facts(ROOT / "README.zh-CN.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        there = (page.parent / target) if target else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles], anchor


@pytest.mark.parametrize("page", [page for page in PAGES if "zh-CN" not in page.name], ids=lambda page: page.name)
def test_english_pages_are_ascii(page: Path) -> None:
    assert [line for line in page.read_text(encoding="utf-8").splitlines() if not line.isascii()] == []


def test_paths_it_names_exist() -> None:
    package = ROOT / "src" / "kava"
    for page in (README, ROOT / "README.zh-CN.md"):
        rows = [line for line in page.read_text(encoding="utf-8").splitlines() if re.search(r"^\|.*`\w+/.*\|$", line)]
        for name in re.findall(r"`((?!src/)\w+/[\w./]*)`", "\n".join(rows)):
            assert (package / name).exists(), f"{page.name}: {name}"


def test_versions_and_families_are_those_of_the_tree() -> None:
    text = README.read_text(encoding="utf-8")
    lock, oldest = ((ROOT / f"{name}.txt").read_text() for name in ("requirements", "requirements-oldest"))
    for package, file in (("torch", lock), ("transformers", lock), ("transformers", oldest)):
        major_minor = re.search(rf"^{package}==(\d+\.\d+)", file, re.M).group(1)
        assert f"{package} {major_minor}" in text
    line = next(line for line in text.splitlines() if line.startswith("Model families:")).lower().replace("-", "")
    assert all(name in line for name in FAMILIES)
