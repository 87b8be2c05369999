"""Who may import whom. Arrows point down only; the equations know nothing but torch; one door to transformers."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "kava"
# A room (a folder or file right below src/kava) may import lower levels and itself; level 0 may import level 0.
LEVEL = {
    **dict.fromkeys(("shapes", "errors", "registry", "config", "files", "answers", "provenance"), 0.0),
    **dict.fromkeys(("latents", "compress", "losses", "align", "fuse"), 1.0),
    **dict.fromkeys(("backbone", "data"), 2.0),
    **{"teachers": 3.0, "objectives": 3.5},
    **{"infer": 4.0, "evaluate": 4.3, "train": 4.6},
    **dict.fromkeys(("suites", "report", "hpc", "env"), 5.0),
    **{"cli": 6.0, "__main__": 7.0},
}
LEVEL_0_ONLY = {"latents", "compress", "losses", "align", "fuse", "suites", "report", "hpc", "env"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every imported module of a file, imports inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the module's full name"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_room_has_a_level():
    assert {room_of(path) for path in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_arrows_point_down(path: Path):
    room = room_of(path)
    for module in imports(path):
        top, _, rest = module.partition(".")
        if top in ("transformers", "peft"):
            assert room in ("backbone", "train"), f"{module}: only backbone/ and train/ know transformers and peft"
        if room in LEVEL_0_ONLY and top not in ("kava", *sys.stdlib_module_names):
            allowed = (
                ("torch", *(("safetensors",) if room == "align" else ()))  # its projector saves itself
                if LEVEL[room] == 1.0
                else ("yaml", "matplotlib", "numpy", "scipy", "pandas", "psutil", "tqdm")
            )
            assert top in allowed or (room == "env" and top == "torch"), (
                f"{module}: not in an equation, not in a report"
            )
        other = rest.partition(".")[0]
        if top != "kava" or other in ("", "__version__", room):
            continue
        assert other in LEVEL, f"{module}: name the module it comes from"
        if room in LEVEL_0_ONLY:
            assert LEVEL[other] == 0, f"{room}/ may import level 0 only, not {module}"
        assert LEVEL[other] < LEVEL[room] or LEVEL[room] == LEVEL[other] == 0, f"{module} is not below {room}/"


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
