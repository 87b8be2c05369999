"""Runs a notebook's code cells in order, in one namespace, without Jupyter; as a script it also stores their outputs.

python tests/notebook.py examples/quickstart.ipynb
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Output = dict[str, Any]


def code_cells(notebook: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Each code cell and its text."""
    return [(cell, "".join(cell["source"])) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: dict[str, Any], change: Callable[[str], str] = lambda text: text) -> list[list[Output]]:
    """The outputs of every code cell, run in the present folder; `change` may edit a cell's text first."""
    import matplotlib

    matplotlib.use("Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for number, (_, text) in enumerate(code_cells(notebook), 1):
        with _captured() as made:
            exec(compile(change(text), f"cell {number}", "exec"), namespace)
        outputs.append(made)
    return outputs


@contextlib.contextmanager
def _captured() -> Iterator[list[Output]]:
    """What a cell prints and shows, as nbformat has it."""
    from matplotlib import pyplot

    made: list[Output] = []
    printed, show = io.StringIO(), pyplot.show

    def keep_figures(*_: Any, **__: Any) -> None:
        for number in pyplot.get_fignums():
            image = io.BytesIO()
            pyplot.figure(number).savefig(image, format="png", dpi=60, bbox_inches="tight")
            data = {"image/png": base64.b64encode(image.getvalue()).decode(), "text/plain": ["<Figure>"]}
            made.append({"output_type": "display_data", "metadata": {}, "data": data})
        pyplot.close("all")

    pyplot.show = keep_figures
    try:
        with contextlib.redirect_stdout(printed):
            yield made
    finally:
        pyplot.show = show
    if printed.getvalue():
        made.insert(0, {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(True)})


def store(path: Path) -> None:
    """Runs the notebook in an empty folder and writes it back with its outputs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        outputs = run(notebook)
    for number, ((cell, _), made) in enumerate(zip(code_cells(notebook), outputs, strict=True), 1):
        cell |= {"outputs": made, "execution_count": number}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    store(Path(sys.argv[1]).resolve())
