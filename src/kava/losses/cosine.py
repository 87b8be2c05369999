"""Held-out cosine similarity, raw and centred, so that a large common mean does not inflate it."""

from torch import Tensor

from kava.losses.direction import cosines


class CosineMeter:
    """Takes two passes over the same batches: `add_mean` each, then `add` each, then `value`.

    student, target [B, M, d] with mask [B, M], or [B, H, M, D] with mask [B, H, M]; in the second form every head has
    its own mean. All sums are in float64 and over True entries only.
    """

    def __init__(self) -> None:
        self.totals: list[Tensor] = []  # [H, D] sums over entries, of student and target
        self.count: Tensor | None = None  # [H] entries in each sum
        self.by_dim: list[Tensor] = []  # [H, D] squared differences, of target to student and to its mean
        self.entries = self.elements = 0
        self.sums: dict[str, float] = {}

    def add_mean(self, student: Tensor, target: Tensor, mask: Tensor) -> None:
        """First pass: adds to the mean vectors of student and target."""
        if self.entries:
            raise ValueError("add_mean after add: the means are in use already")
        parts, mask = _prepare(student, target, mask)
        fresh = [part.sum((0, 2)) for part in parts]
        count = mask.sum((0, 2))
        if self.count is None:
            self.totals, self.count = fresh, count
        else:
            self.totals = [old + new for old, new in zip(self.totals, fresh, strict=True)]
            self.count = self.count + count

    def add(self, student: Tensor, target: Tensor, mask: Tensor) -> None:
        """Second pass: compares every entry with those means."""
        if self.count is None:
            raise ValueError("add before add_mean: the means come first")
        (student, target), mask = _prepare(student, target, mask)
        own, common = (total / self.count.clamp(min=1)[:, None] for total in self.totals)  # [H, D]
        own, common = own[None, :, None], common[None, :, None]
        values = {
            "cossim": cosines(student, target),
            "cossim_centred": cosines(student - common, target - common),
            "cossim_mean_predictor": cosines(common.expand_as(target), target),
            "difference": (student - target).square().sum(-1),
            "target_square": target.square().sum(-1),
            "target_spread": (target - common).square().sum(-1),
            "student_square": student.square().sum(-1),
            "student_spread": (student - own).square().sum(-1),
        }
        for name, each in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(each.masked_fill(~mask, 0.0).sum())
        squares = [
            (target - other).square().masked_fill(~mask[..., None], 0.0).sum((0, 2)) for other in (student, common)
        ]
        self.by_dim = [old + new for old, new in zip(self.by_dim, squares, strict=True)] if self.by_dim else squares
        self.entries += int(mask.sum())
        self.elements += int(mask.sum()) * target.shape[-1]

    def value(self) -> dict[str, float | None]:
        """Means over all entries; None if there were none.

        cossim                 mean cos(s, t)
        cossim_centred         mean cos(s - m, t - m), m the targets' mean; 0 for an entry that is that mean
        cossim_mean_predictor  mean cos(m, t): the raw score of always predicting m (its centred score is 0)
        difference             mean squared difference of an element
        mean_predictor         the same of m and t: the error of always predicting m
        unexplained            their ratio: 0 for a perfect student, 1 for one no better than m
        unexplained_by_dim     the mean of each dimension's own ratio, so that no dimension counts for its size
        spread                 sqrt(sum |t - m|^2 / sum |t|^2): 0 if the targets have collapsed into one vector
        student_spread         the same of the student, around its own mean
        """
        names = ("cossim", "cossim_centred", "cossim_mean_predictor")
        if not self.entries:
            others = ("difference", "mean_predictor", "unexplained", "unexplained_by_dim", "spread", "student_spread")
            return dict.fromkeys((*names, *others))
        value: dict[str, float | None] = {name: self.sums[name] / self.entries for name in names}
        difference, spread = self.sums["difference"], self.sums["target_spread"]
        value |= {"difference": difference / self.elements, "mean_predictor": spread / self.elements}
        value["unexplained"] = difference / spread if spread else None
        apart, around = (part[self.by_dim[1] > 0] for part in self.by_dim)
        value["unexplained_by_dim"] = float((apart / around).mean()) if len(around) else None
        for name, side in (("spread", "target"), ("student_spread", "student")):
            square = self.sums[f"{side}_square"]
            value[name] = (self.sums[f"{side}_spread"] / square) ** 0.5 if square else 0.0
        return value


def _prepare(student: Tensor, target: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
    """Student and target in float64 as [B, H, M, D], 0 where the mask [B, H, M] is False."""
    if mask.dim() == 2:
        student, target, mask = student[:, None], target[:, None], mask[:, None]
    parts = [_double(part) for part in (student, target)]
    mask = mask.to(parts[0].device)
    return [part.masked_fill(~mask[..., None], 0.0) for part in parts], mask


def _double(part: Tensor) -> Tensor:
    part = part.detach()
    return (part.cpu() if part.device.type == "mps" else part).double()  # Apple's device has no float64
