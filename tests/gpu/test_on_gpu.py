"""Every item of the GPU kit as a test, at its real sizes: `make test-gpu` on a machine with a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest

from kava.lab.bench.gpu.items import ITEMS, KitSetup
from kava.lab.selfcheck.context import Skipped

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ITEMS)
def test_item(name: str, tmp_path: Path) -> None:
    import torch

    from kava.backbone.quantize import compute_dtype

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        finding = ITEMS[name].run(KitSetup(device, compute_dtype(device), tiny=False, scratch=tmp_path))
    except Skipped as reason:
        pytest.skip(str(reason))
    print(f"{name}: {finding.text}")
