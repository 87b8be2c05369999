"""What a page writes in backticks exists: paths, verbs of kava, modules, classes and their members, settings."""

from __future__ import annotations

import ast
import os
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from pages import BLOCK, CHINESE, DOCS, README, ROOT

from kava.cli.verbs import FORMER, HIDDEN, VERBS
from kava.config import KEYS

PAGES = [README, CHINESE, ROOT / "CONTRIBUTING.md", *DOCS]
PACKAGE = ROOT / "src" / "kava"
LEFT_OUT = ("__pycache__", "outputs", "results", "fixtures", "golden")
HOMES = (ROOT, PACKAGE, ROOT / "tests", ROOT / "docs", ROOT / "scripts", ROOT / "examples")


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Files of a run, of a reader, or of other programs; `outputs/...` and the like are never looked up.
RUN_FILES = words(
    "recipe.yaml meta.json data_card.json train.log log.jsonl training_log.txt TRAINING_COMPLETED.txt alignment.json"
    " routing.jsonl routing_samples.json layer_loss.jsonl aggregated_results.json jobs.json"
    " EXPERIMENT_REPORT.txt EXPERIMENT_REPORT.json"
    " best_checkpoint emergency_checkpoint checkpoint.json checkpoint.pt student final_model final_model/student"
    " projector.safetensors student_state_dict.safetensors projector_state_dict.safetensors optimizer_state_dict.pt"
    " train.jsonl validation.jsonl test.jsonl my_compressors.py configs/kava_site.yaml configs/environment_config.yaml"
    " result.json table.txt LOG-entry.md worker.log kava.json shards"
    " .json .jsonl .yaml"
)
# Scripts of the guides: docs/from-the-guides.md says what takes their place.
GUIDE_SCRIPTS = words("export_gsm8k.py download_assets.py train_with_kv.py train_adaptive.py train_multi_teacher_kv.py")
RUN_FOLDERS = ("outputs/", "logs/", "data/gsm8k", "checkpoint-", "~/", "./", "/", "HF_HOME/", "owner/", ".jobs/",
               "src/kava/data/sources/riddles")  # fmt: skip
OURS = ("src/", "scripts/", "tests/", "examples/", "runs/")
# Names of other libraries and of other programs.
FOREIGN = words("ConnectionError HTTPSConnectionPool NCCL_DEBUG NCCL_SOCKET_IFNAME")
PATH = re.compile(r"[\w.~-]*(?:[/.][\w.<>{}*-]+)+/?|[\w.-]+/")
EXTENSION = re.compile(
    r"\.(py|md|sh|ps1|slurm|ya?ml|json|jsonl|txt|toml|svg|png|tex|csv|html|css|ipynb|pt|safetensors|log)$"
)


def names_in_backticks(page: Path) -> list[str]:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    if page.name == "from-the-guides.md":
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.M)  # the first column has the guides' words
    return sorted({code.strip() for code in re.findall(r"`([^`\n]+)`", text)})


@cache
def basenames() -> set[str]:
    """The name of every file and folder of the repository that is not a run's or an environment's."""
    names: set[str] = set()
    for _, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith(".")]
        names.update(folders, files)
    return names


@cache
def classes() -> dict[str, set[str]]:
    """Every class below src/kava with the names of its body and of its methods' `self.name`; bases of ours included."""
    members: dict[str, set[str]] = defaultdict(set)
    bases: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] |= {base.id for base in node.bases if isinstance(base, ast.Name)}
                for item in ast.walk(node):
                    if isinstance(item, (ast.FunctionDef, ast.ClassDef)):
                        members[node.name].add(item.name)
                    elif isinstance(item, ast.Name):
                        members[node.name].add(item.id)
                    elif (
                        isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name) and item.value.id == "self"
                    ):
                        members[node.name].add(item.attr)
    for name in list(members):
        for base in bases[name]:
            members[name] |= members.get(base, set())
    return members


@cache
def words_of_the_source() -> frozenset[str]:
    roots = (PACKAGE, ROOT / "scripts")
    files = [path for root in roots for path in root.rglob("*") if path.suffix in (".py", ".sh", ".yaml", ".slurm")]
    return frozenset(word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8")))


def is_path(code: str) -> bool:
    return bool(PATH.fullmatch(code)) and ("/" in code or bool(EXTENSION.search(code)))


def path_exists(code: str) -> bool:
    plain = code.rstrip("/")
    if plain in RUN_FILES | GUIDE_SCRIPTS or code.startswith(RUN_FOLDERS) or "/" + plain in RUN_FOLDERS:
        return True
    if re.search(r"[<>{}*]", plain):  # a pattern such as results_<set>.yaml
        return True
    if "/" not in plain:
        return plain in basenames()
    return any((home / plain).exists() for home in HOMES)


@cache
def names_of_file(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    nodes = [inner for node in body for inner in ast.walk(node)]
    defined = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    return defined | used | {node.name for node in nodes if isinstance(node, ast.alias)}


def dotted_exists(code: str) -> bool:
    """`kava.fuse.shares`, `Aligner.freeze_unused`; True for what is no name of ours."""
    first, *rest = code.split(".")
    if code in FOREIGN:
        return True
    if first == "kava":
        module = PACKAGE
        for part in rest:
            if (module / part).is_dir() or (module / f"{part}.py").is_file():
                module = module / part if (module / part).is_dir() else module / f"{part}.py"
                continue
            return part in names_of_file(module / "__init__.py" if module.is_dir() else module) | {"__version__"}
        return True
    if first in classes():
        return not rest or rest[0] in classes()[first]
    if rest and first in {key.split(".")[0] for key in KEYS}:
        return code in KEYS or any(key.startswith(f"{code}.") for key in KEYS)
    # a name in capitals or CamelCase must be somewhere in the source; an ordinary word need not be
    invented = re.match(r"[A-Z]\w*[a-z]\w*[A-Z]|[A-Z]{2}[A-Z_]{2,}$|[A-Z][a-z]+\.\w", code)
    return not invented or (rest or [first])[-1] in words_of_the_source()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_backticks_exist(page: Path) -> None:
    verbs = {verb.name for verb in VERBS} | set(HIDDEN) | set(FORMER)
    stale = []
    for code in names_in_backticks(page):
        verb = re.match(r"kava ([a-z]\w*)", code)
        member = re.fullmatch(r"([\w/]+\.py):([\w.]+)", code)
        if verb:
            fine = verb[1] in verbs
        elif member:
            files = [home / member[1] for home in HOMES if (home / member[1]).is_file()]
            fine = bool(files) and member[2].split(".")[0] in names_of_file(files[0])
        elif is_path(code):
            fine = path_exists(code)
        elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*(\(.*\)|=.*)?", code):
            fine = dotted_exists(re.split(r"[(=]", code)[0])
        else:  # a command or a sentence: the paths of ours in it
            fine = all(path_exists(word) for word in code.split() if is_path(word) and word.startswith(OURS))
        if not fine:
            stale.append(code)
    assert stale == []


def test_the_check_finds_what_is_gone() -> None:
    assert not path_exists("src/kava/report/paired.py")
    assert not path_exists("no_such_file.py")
    assert not dotted_exists("kava.fuse.no_such_name")
    assert not dotted_exists("Aligner.no_such_method")
    assert not dotted_exists("training.no_such_setting")
    assert not dotted_exists("NoSuchClass")


def test_a_batch_passes_no_file_twice() -> None:
    """The table "From a row to the loss" of layout.md: on every line the files in order, each once, all of them there."""
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    section = text.partition("## From a row to the loss")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    header, *steps = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if "---" not in row]
    lines = header[1:]
    assert len(lines) == 5
    passed: dict[str, list[str]] = {line: [] for line in lines}
    for step, *cells in steps:
        common, here = re.findall(r"`([\w/]+\.py)`", step), []
        for number, cell in enumerate(cells):
            left = here[1 if cell.startswith("as latent, several") else number - 1] if number else []
            own = re.findall(r"`([\w/]+\.py)`", cell)
            here.append(left + own if cell.startswith(("same", "and ", "as latent, several")) else own)
        for line, files in zip(lines, here, strict=True):
            passed[line] += common + files
    for line, files in passed.items():
        assert len(files) > 10, line
        assert len(set(files)) == len(files), f"{line}: {[file for file in files if files.count(file) > 1]}"
        assert all((ROOT / "src" / "kava" / file).is_file() for file in files), line
