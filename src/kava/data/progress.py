"""ASCII progress bars for reading and encoding rows."""

from collections.abc import Iterable
from typing import Any


def progress_bar(items: Iterable[Any], what: str, show: bool = True) -> Iterable[Any]:
    """`items` with an ASCII bar that appears after a second, and only on a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=what, ascii=True, delay=1.0, unit="row", disable=None if show else True)
