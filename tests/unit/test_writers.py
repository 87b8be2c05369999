"""Files are written in one place: nothing in the sources opens, makes, renames or copies a file but `kava/files.py`."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "kava"
METHODS = {
    "write_text",
    "write_bytes",
    "mkdir",
    "makedirs",
    "touch",
    "rename",
    "symlink_to",
    "hardlink_to",
    "FileHandler",
}
FUNCTIONS = {
    "os": {"replace", "link", "symlink", "mkdir", "mknod", "mkfifo", "truncate"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move"},
    "tempfile": {"mkstemp", "mkdtemp", "NamedTemporaryFile"},
}
ALLOWED = {
    "files.py": "the place itself",
    "cli/surroundings.py": "os.devnull in place of a stream that is closed",
    "training/guide_files.py": "hard links into a folder of files.new_folder, which appears when it is complete",
}


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file or makes a folder."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    if name == "open" and owner not in ("os", "image"):
        values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        return any(set(mode) <= set("rwxab+t") and set(mode) & set("wxa+") for mode in modes)
    return (isinstance(function, ast.Attribute) and name in METHODS) or name in FUNCTIONS.get(owner, ())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_one_place_writes(path: Path):
    if path.relative_to(PACKAGE).as_posix() in ALLOWED:
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    lines = [f"line {call.lineno}: {ast.unparse(call)}" for call in calls if writes(call)]
    assert not lines, (
        "use kava.files: write_text, write_bytes, write_json, open_append, open_partial, make_folder, new_folder"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("open(p, 'w')", 1), ("p.open(mode='ab')", 1), ("p.mkdir()", 1), ("os.replace(a, b)", 1), ("open(p)", 0),
     ("text.replace('a', 'b')", 0), ("p.open('rb')", 0), ("write_text(p, 'x')", 0), ("p.write_text('x')", 1)],
)  # fmt: skip
def test_what_counts_as_writing(text: str, expected: int):
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert writes(call) == bool(expected)
