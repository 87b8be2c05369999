"""The tree itself: no path of one machine, ASCII where a terminal shows it, scripts that parse, an exact lock."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = {".py", ".sh", ".yaml", ".yml", ".toml", ".txt", ".md", ".ps1", ".json", ""}
SKIP = {".git", ".venv", ".venv-oldest", "outputs", "logs", "cache", "datasets", "build", "dist"}
FOLDERS = ("src", "tests", "scripts", "examples", "docs", ".ci")


def tree() -> list[Path]:
    """The text files of the project: its root's and those of its own folders, not what runs and tools leave."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    hidden = SKIP | {"__pycache__"}
    return [path for path in files if path.suffix in TEXT and not hidden & set(path.relative_to(ROOT).parts)]


FILES = tree()
SCRIPTS = [ROOT / "setup.sh", ROOT / ".ci" / "run", *(path for path in FILES if path.suffix == ".sh")]


def test_no_absolute_path_in_the_tree():
    # put together here, so that this file does not find itself
    pattern = re.compile(
        r"""(?:^|[\s"'=(:`])(/(?:""" + "|".join(("home", "scratch", "work", "root", "Users")) + r")/\w+)"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group(1)}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in pattern.finditer(line)
    ]
    assert not found


def test_sources_are_ascii():
    """A GBK or ASCII terminal survives whatever our code prints. (Chinese text: README.zh-CN.md and data only.)"""
    for path in FILES:
        inside = path.relative_to(ROOT).parts[0] in ("src", "scripts", "examples", ".ci")
        if (inside or path.parent == ROOT) and path.suffix not in (".md", ".json"):
            bad = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.isascii()]
            assert not bad, f"{path.relative_to(ROOT)}: {bad[0]}"


def test_root_holds_no_status_documents():
    allowed = {"README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert {path.name for path in ROOT.glob("*.md")} <= allowed


@pytest.mark.parametrize("script", dict.fromkeys(SCRIPTS), ids=lambda path: path.name)
def test_scripts_parse(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_lock_is_exact_and_covers_the_dependencies():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z0-9-]+==[\w.]+(; python_version (<|>=) "3\.11")?', line) for line in lines)
    locked = {line.partition("==")[0] for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    named = {
        name.lower() for name in re.findall(r'^\s+"([A-Za-z][\w-]*)>=|\["([\w-]+)>=', project) for name in name if name
    }
    named |= {name.lower() for name in re.findall(r'"([A-Za-z][\w-]*)>=\d', project)}
    # bitsandbytes: 120 MB that only quantised teachers need; lm-eval: forty packages that only kava.harness needs
    assert named - locked <= {"pre-commit", "bitsandbytes", "lm-eval"}


def test_license_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def setup(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(["bash", str(folder / "setup.sh"), *words], env=plain, capture_output=True, text=True)


def test_setup_finds_the_environment_even_where_paths_have_spaces(tmp_path: Path):
    project = tmp_path / "my project"
    project.mkdir()
    shutil.copy(ROOT / "setup.sh", project)
    chosen = tmp_path / "an environment"
    (chosen / "bin").mkdir(parents=True)
    (chosen / "bin" / "python").symlink_to(shutil.which("python3") or "python3")
    for name in ("KAVA_VENV", "VIRTUAL_ENV", "CONDA_PREFIX"):
        done = setup(project, "--python", **{name: str(chosen)})
        assert done.stdout.strip() == str(chosen / "bin" / "python"), done.stderr
    done = setup(project, "--python")
    assert done.returncode == 1
    assert f"{project}/.venv" in done.stderr


def test_setup_refuses_what_it_does_not_know(tmp_path: Path):
    shutil.copy(ROOT / "setup.sh", tmp_path)
    assert "unknown flag" in setup(tmp_path, "--pyton").stderr
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("bash", "dirname"):
        (empty / tool).symlink_to(shutil.which(tool) or tool)
    done = setup(tmp_path, PATH=str(empty))
    assert done.returncode == 1
    assert "no Python >= 3.10 found" in done.stderr
