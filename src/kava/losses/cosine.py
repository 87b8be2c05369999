"""Held-out cosine similarity that a large common mean cannot flatter."""

from __future__ import annotations

from torch import Tensor

from kava.losses.direction import cosines


class CosineMeter:
    """Two passes over the same batches: `add_mean` each, then `add` each, then `value`.

    student, target [B, M, d] with mask [B, M], or [B, H, M, D] with mask [B, H, M]; in the second form every head has
    its own mean. All sums are in float64 and over True entries only.
    """

    def __init__(self) -> None:
        self.means: list[Tensor] = []  # sums until the first `add`, means then
        self.seen: Tensor | None = None  # [H] entries behind each mean
        self.entries = self.elements = 0
        self.sums: dict[str, float] = {}

    def add_mean(self, student: Tensor, target: Tensor, mask: Tensor) -> None:
        """First pass: towards the mean vector of each side."""
        if self.entries:
            raise ValueError("add_mean after add: the means are in use already")
        parts, mask = _prepare(student, target, mask)
        fresh = [part.sum((0, 2)) for part in parts]
        count = mask.sum((0, 2))
        if self.seen is None:
            self.means, self.seen = fresh, count
        else:
            self.means = [old + new for old, new in zip(self.means, fresh, strict=True)]
            self.seen = self.seen + count

    def add(self, student: Tensor, target: Tensor, mask: Tensor) -> None:
        """Second pass: every entry against those means."""
        if self.seen is None:
            raise ValueError("add before add_mean: the means come first")
        (student, target), mask = _prepare(student, target, mask)
        own, common = (total / self.seen.clamp(min=1)[:, None] for total in self.means)  # [H, D]
        own, common = own[None, :, None], common[None, :, None]
        found = {
            "cossim": cosines(student, target),
            "cossim_centred": cosines(student - common, target - common),
            "cossim_mean_predictor": cosines(common.expand_as(target), target),
            "difference": (student - target).square().sum(-1),
            "target_square": target.square().sum(-1),
            "target_spread": (target - common).square().sum(-1),
            "student_square": student.square().sum(-1),
            "student_spread": (student - own).square().sum(-1),
        }
        for name, each in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(each.masked_fill(~mask, 0.0).sum())
        self.entries += int(mask.sum())
        self.elements += int(mask.sum()) * target.shape[-1]

    def value(self) -> dict[str, float | None]:
        """Means over all entries; None where there was none.

        cossim                 mean cos(s, t)
        cossim_centred         mean cos(s - m, t - m), m the targets' mean; 0 for an entry that is that mean
        cossim_mean_predictor  mean cos(m, t): what giving m every time would score, raw (centred it scores 0)
        difference             mean squared difference of an element
        mean_predictor         the same of m and t: what giving m every time would cost
        unexplained            their ratio: 0 where the student gives every target, 1 where it does no better than m
        spread                 sqrt(sum |t - m|^2 / sum |t|^2): 0 where the targets have collapsed into one vector
        student_spread         the same of the student, around its own mean
        """
        names = ("cossim", "cossim_centred", "cossim_mean_predictor")
        if not self.entries:
            return dict.fromkeys((*names, "difference", "mean_predictor", "unexplained", "spread", "student_spread"))
        value: dict[str, float | None] = {name: self.sums[name] / self.entries for name in names}
        difference, spread = self.sums["difference"], self.sums["target_spread"]
        value |= {"difference": difference / self.elements, "mean_predictor": spread / self.elements}
        value["unexplained"] = difference / spread if spread else None
        for name, side in (("spread", "target"), ("student_spread", "student")):
            square = self.sums[f"{side}_square"]
            value[name] = (self.sums[f"{side}_spread"] / square) ** 0.5 if square else 0.0
        return value


def _prepare(student: Tensor, target: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
    """Both in float64 as [B, H, M, D] with 0 where the mask [B, H, M] is False."""
    if mask.dim() == 2:
        student, target, mask = student[:, None], target[:, None], mask[:, None]
    parts = [_double(part) for part in (student, target)]
    mask = mask.to(parts[0].device)
    return [part.masked_fill(~mask[..., None], 0.0) for part in parts], mask


def _double(part: Tensor) -> Tensor:
    part = part.detach()
    return (part.cpu() if part.device.type == "mps" else part).double()  # Apple's device has no float64
