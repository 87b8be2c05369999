"""How much of what varies in the targets a student leaves unexplained, every dimension counting alike."""

from torch import Tensor


class UnexplainedByDim:
    """mean over heads and dimensions of  sum (s - t)^2 / sum (t - mean)^2,  in one pass over the batches.

    0: a perfect student; 1: no better than the targets' mean, a constant. Neither constants nor units of dimensions change
    it, so it is one measure for every `loss.kv_scale`. A dimension in which no target varies is left out.
    """

    def __init__(self) -> None:
        self.sums: list[Tensor] = []  # [H, 1], then [H, D]: entries, t, t^2, (s - t)^2

    def add(self, student: Tensor, target: Tensor, mask: Tensor) -> None:
        """student, target [B, H, M, D]; mask [B, H, M]"""
        device = "cpu" if target.device.type == "mps" else target.device  # Apple's device has no float64
        real = mask[..., None].to(device)
        student, target = (side.detach().to(device).double().masked_fill(~real, 0.0) for side in (student, target))
        parts = (real.double(), target, target.square(), (student - target).square())
        new = [part.sum((0, 2)) for part in parts]
        self.sums = [old + one for old, one in zip(self.sums, new, strict=True)] if self.sums else new

    def value(self) -> float | None:
        """None where no dimension varies."""
        if not self.sums:
            return None
        count, total, square, apart = self.sums
        spread = square - total.square() / count.clamp(min=1)
        varies = spread > 1e-12 * square  # less is rounding
        return float((apart / spread)[varies].mean()) if bool(varies.any()) else None
