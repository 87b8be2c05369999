"""Who may import whom: rooms by level, a wall around the method, equations that know torch only, one door to transformers."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "kava"
# A room (a folder or file right below src/kava) may import lower levels and itself; level 0 may import level 0.
LEVEL = {
    **dict.fromkeys(("shapes", "errors", "registry", "text_table", "config", "files", "outputs"), 0.0),
    **dict.fromkeys(("answers", "provenance"), 0.0),
    **{"characters": 0.0, "console": 0.0, "run_files": 0.0, "progress": 0.2},
    "stop_signals": 0.0,
    **dict.fromkeys(("latents", "compress", "losses", "align", "fuse"), 1.0),
    **dict.fromkeys(("backbone", "data"), 2.0),
    **{"teachers": 3.0, "objective": 3.5},
    **{"infer": 4.0, "evaluation": 4.3, "lens": 4.5, "training": 4.6, "export": 4.7, "serve": 4.8},
    **{"share": 4.85, "harness": 4.87, "api": 4.9},
    **{"machine": 5.0, "cluster": 5.0, "lab": 5.5},
    **{"cli": 6.0, "__main__": 7.0},
}
# imported in one method that stands for the room, when it is called
ON_CALL = {"infer/student.py": ("kava.share.push.", "kava.lens.")}  # Student.push_to_hub, Student.lens
INSIDE_THE_WALL = {"lab", "cluster", "machine", "cli", "__main__"}  # nothing of the method imports these
LEVEL_0_ONLY = {"latents", "compress", "losses", "align", "fuse", "cluster", "machine"}
TABLES_AND_PAGES = (
    "lab/analysis",
    "lab/page",
    "lab/suites",
)  # these read files: they work where torch is not installed
LIGHT = (
    "yaml",
    "pydantic",
    "jinja2",
    "markupsafe",
    "matplotlib",
    "numpy",
    "scipy",
    "pandas",
    "psutil",
    "tqdm",
    "tabulate",
)
CONTENT_FREE = frozenset(
    ["found", "one", "asked", "given", "shown", "seen", "looked", "mine", "theirs", "there", "both"]
)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@cache  # parsed once, by the process that runs these tests alone
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, inside_functions: bool = True) -> Iterator[str]:
    """Every module a file imports; those of `if TYPE_CHECKING` included."""
    nodes = ast.walk(tree(path)) if inside_functions else _module_level(tree(path))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the module's full name"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _module_level(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            yield from _module_level(node)


def test_every_room_has_a_level():
    assert {room_of(path) for path in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_arrows_point_down(path: Path):
    room, place = room_of(path), path.relative_to(PACKAGE).as_posix()
    for module in imports(path):
        top, _, rest = module.partition(".")
        if top in ("transformers", "peft"):
            alone = "export/generate.py"  # it is copied into folders, and works without kava
            door = room in ("backbone", "training") or place.startswith(("lab/bench/", "lab/selfcheck/", alone))
            assert door, f"{module}: only backbone/, training/, benches and the self-check know transformers and peft"
        light = place.startswith(TABLES_AND_PAGES)
        if (room in LEVEL_0_ONLY or light) and top not in ("kava", *sys.stdlib_module_names):
            equation = LEVEL[room] == 1.0
            allowed = ("torch", *(("safetensors",) if room == "align" else ())) if equation else LIGHT
            assert top in allowed or (room == "machine" and top == "torch"), f"{module} does not belong into {place}"
        other = rest.partition(".")[0]
        if top != "kava" or other in ("", "__version__", room) or module.startswith(ON_CALL.get(place, "-")):
            continue
        assert other in LEVEL, f"{module}: name the module it comes from"
        if room not in INSIDE_THE_WALL:
            assert other not in INSIDE_THE_WALL, f"{place} is outside the wall and imports {module}"
        if room in LEVEL_0_ONLY or light:
            assert LEVEL[other] == 0, f"{place} may import level 0 only, not {module}"
        assert LEVEL[other] < LEVEL[room] or LEVEL[room] == LEVEL[other] == 0, f"{module} is not below {room}/"


def test_no_circle_between_files():
    names = {_dotted(path): path for path in FILES}
    needs = {
        name: {
            target
            for module in imports(path)
            if (target := _file_of(module, names)) not in (None, name)
            and not module.startswith(ON_CALL.get(path.relative_to(PACKAGE).as_posix(), "-"))
        }
        for name, path in names.items()
    }
    while free := [name for name, targets in needs.items() if not targets]:
        for name in free:
            del needs[name]
        for targets in needs.values():
            targets.difference_update(free)
    assert not needs, f"files that import each other: {', '.join(sorted(needs))}"


def _dotted(path: Path) -> str:
    return ".".join(("kava", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def _file_of(module: str, names: dict[str, Path]) -> str | None:
    """The file behind `kava.room.file.name`; a package's own __init__ counts where a name comes from it."""
    return next((name for name in (module, module.rpartition(".")[0]) if name in names), None)


def test_no_class_name_twice():
    classes = Counter(node.name for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef))
    assert not [name for name, count in classes.items() if count > 1]


def test_locals_say_what_they_hold():
    """Assignments to names without content, over the syntax tree of all of src."""
    stored = Counter(
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in CONTENT_FREE
    )
    assert stored.total() < 60, stored.most_common(10)


def test_the_command_line_loads_no_torch():
    """Level 0 but the legend of shapes, which only rooms with tensors read."""
    for path in FILES:
        if LEVEL[room_of(path)] == 0 and room_of(path) != "shapes":
            heavy = {module.partition(".")[0] for module in imports(path)} & {"torch", "numpy", "datasets", "pandas"}
            assert not heavy, f"{path.name} imports {heavy}"


def test_no_file_is_named_like_a_standard_module():
    standard = sys.stdlib_module_names
    names = {path.stem for path in PACKAGE.rglob("*.py")} | {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not names & {name for name in standard if not name.startswith("_")}
