"""How fast a device multiplies matrices: as its data sheet says, and as measured here."""

import torch

from kava.lab.bench.timing import take_turns

# Dense products of bfloat16 (float16 where the card has none) per second, from the vendor's data sheets; the first name
# that is part of the device's name counts.
DATA_SHEETS = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A40": 150e12,
    "V100": 125e12,
    "T4": 65e12,
}


def data_sheet_rate(device: torch.device) -> float | None:
    """Operations a second by the data sheet; None for a card that is not listed, and for a CPU."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((rate for name, rate in DATA_SHEETS.items() if set(name.split()) <= set(words)), None)


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second of one large matrix product, the median of five."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = take_turns({"product": lambda: left @ right}, 5, device, warmup=2)["product"].facts()["seconds"]
    return 2 * size**3 / float(seconds)
