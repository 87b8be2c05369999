"""README.md, its translation and the manuals: blocks run as they stand, on tiny models under the real names."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pages import BLOCK, CHINESE, DOCS, LINK, PAGES, README, ROOT, blocks, commands
from test_from_the_guides import parse

import hub
from kava.backbone.families import FAMILIES
from kava.cli import main as cli
from kava.config import load_recipe
from kava.data.load import load_file

MANUALS = [README, *(ROOT / "docs" / f"{name}.md" for name in ("train", "evaluate", "data", "compare", "python"))]
MANUALS += [ROOT / "docs" / "separate-teacher.md"]
TRAINED = ["train", "--config", "llama1b_aug", "--seed", "42"]  # whose student the pages evaluate and ask
FEWER = (  # what makes the example of Python end in seconds
    '{"training.max_steps": 20}',
    '{"training.max_steps": 2, "training.batch_size": 8, "logging.report_to": [], "evaluation.validation_size": 8, '
    '"dataset.generator.train_size": 64, "dataset.generator.val_size": 8}',
)
DONE: set[tuple[str, ...]] = set()  # a command that several pages have runs once


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the hub in miniature and the shipped data."""
    root = hub.build(tmp_path_factory.mktemp("readme"))
    shutil.copytree(ROOT / "data", root / "data", dirs_exist_ok=True)
    DONE.clear()
    return root


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the working folder, with a trained student in it."""
    hub.enter(home, monkeypatch)
    kava(TRAINED, monkeypatch)
    return home


def quick(words: list[str]) -> list[str]:
    """A command that ends in seconds; a training writes to the folder that it would write to without --quick_test."""
    if words[0] == "extract":
        return [*words, "dataset.generator.train_size=16"]
    if words[0] in ("evaluate", "infer"):
        return [*words, "--max_new_tokens", "8"]
    if words[0] not in ("train", "distill"):
        return words
    folder = []
    if "--output_dir" not in words:
        recipe, seed = (words[words.index(flag) + 1] for flag in ("--config", "--seed"))
        folder = ["--output_dir", f"outputs/{recipe}_seed_{seed}"]
    # loader processes cost seconds each, and untrained models never stop by themselves
    return [*words, "--quick_test", *folder, "system.num_workers=0", "evaluation.max_new_tokens=8"]


def kava(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if tuple(words) in DONE:
        return
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ann has 3 apples. How many?\n/latent off\n/quit\n"))
    assert cli.main(quick(words)) == 0, f"kava {shlex.join(words)}"
    DONE.add(tuple(words))


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


@pytest.mark.parametrize("page", MANUALS, ids=lambda page: page.stem)
def test_every_block_runs_in_order(
    page: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(page):
        if block.kind == "python":
            exec(compile(block.text.replace(*FEWER), str(page), "exec"), {})
            if "truncated" in block.text:
                assert re.fullmatch(r".* \d+ (True|False)", capsys.readouterr().out.strip().splitlines()[-1])
        if block.kind == "yaml":
            (here / "recipe_of_the_page.yaml").write_text(block.text, encoding="utf-8")
            load_recipe(here / "recipe_of_the_page.yaml")
        for program, *words in commands(block.text) if block.kind == "bash" else ():
            if block.reason is None:
                PROGRAMS[program](words, monkeypatch)
            else:
                parse(words)


def test_the_files_that_the_pages_promise(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = here / "outputs" / "llama1b_aug_seed_42"
    kava(["evaluate", "--checkpoint", f"outputs/{run.name}/best_checkpoint", "--dataset", "gsm8k", "gsm8k-hard", "svamp"],
         monkeypatch)  # fmt: skip
    named = ("recipe.yaml", "meta.json", "data_card.json", "train.log", "log.jsonl", "best_checkpoint")
    assert [name for name in named if not (run / name).exists()] == []
    for name in ("gsm8k", "gsm8k-hard", "svamp"):
        results = yaml.safe_load((run / f"results_{name}.yaml").read_text(encoding="utf-8"))
        assert results["total"] == hub.TEST_ROWS
        assert len((run / f"predictions_{name}.jsonl").read_text(encoding="utf-8").splitlines()) == hub.TEST_ROWS


def test_its_rows_are_read_as_data(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(block.text for block in blocks(README) if block.kind == "json"), encoding="utf-8")
    examples = load_file(file)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [list(example.steps) for example in examples] == [row.get("steps", []) for row in rows]
    assert [example.answer for example in examples] == ["36", "7"]


def test_the_translation_has_the_same_headings_blocks_numbers_and_links() -> None:
    def facts(page: Path) -> tuple[list[int], list[str], list[list[str]], list[str]]:
        text = page.read_text(encoding="utf-8")
        outside = BLOCK.sub("", text)
        headings = [len(marks) for marks in re.findall(r"^(#+) ", outside, re.M)]
        table = [re.findall(r"\d[\d.,]*", line) for line in outside.splitlines() if re.search(r"\|.*\d\.\d.*\|", line)]
        links = [target for target, _ in LINK.findall(outside) if not target.startswith("README")]
        return headings, [block.text for block in blocks(page)], table, links

    assert facts(README) == facts(CHINESE)
    assert len(facts(README)[2]) == 4  # the rows of the demo


def test_every_page_is_one_click_from_a_readme_of_one_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text) <= 7500
    links = {target for target, _ in LINK.findall(text)}
    assert {f"docs/{page.name}" for page in DOCS} - links == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target) if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles], anchor


@pytest.mark.parametrize("page", [page for page in PAGES if page != CHINESE], ids=lambda page: page.name)
def test_english_pages_are_ascii(page: Path) -> None:
    assert [line for line in page.read_text(encoding="utf-8").splitlines() if not line.isascii()] == []


def test_versions_and_families_are_those_of_the_tree() -> None:
    text = README.read_text(encoding="utf-8")
    lock, oldest = ((ROOT / f"{name}.txt").read_text() for name in ("requirements", "requirements-oldest"))
    for package, file in (("torch", lock), ("transformers", lock), ("transformers", oldest)):
        major_minor = re.search(rf"^{package}==(\d+\.\d+)", file, re.M).group(1)
        assert f"{package} {major_minor}" in text
    line = next(line for line in text.splitlines() if line.startswith("Model families:")).lower().replace("-", "")
    assert all(name.partition("_")[0] in line for name in FAMILIES)


def test_the_pictures_are_those_that_the_script_draws() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "draw_two_passes.py"))
    for name, theme in (("two-passes.svg", "LIGHT"), ("two-passes-dark.svg", "DARK")):
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == script["draw"](script[theme])
        assert f"docs/{name}" in README.read_text(encoding="utf-8")
