"""Losses of direction and length: the direction of a vector apart from its length."""

from torch import Tensor

from kava.shapes import at_least_float32

KINDS = ("cosine", "mercator", "hybrid")
ALIGNED = 0.95  # an entry whose cosine is above this counts as aligned
TINY = 1e-8


def direction_loss(
    student: Tensor,
    teacher: Tensor,
    kept: Tensor,
    kind: str = "cosine",
    beta: float = 0.01,
    mse: float = 0.2,
    detach: bool = True,
    weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One layer's sum over the kept slots and heads, and the metrics to log. Keys and values apart.

    cosine    1 - cos(s, t)
    mercator  1 - cos(s, t) + beta (log |s| - log |t|)^2
    hybrid    (1 - mse) mercator + mse * mean_d (s - t)^2                                [documented: 0.8 and 0.2]

    Unlike in the other distances an entry counts 1, not D. student, teacher [B, H, M, D]; kept [B, H, M]; `weight`
    [B, H, M] of each entry. The metrics are sums over the kept entries, too, unweighted and without gradient. `detach`
    False: the gradient reaches the target, which is trained, too.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown direction loss {kind!r}, known: {KINDS}")
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach() if detach else teacher)
    cosine = cosines(student, teacher)
    student_norm, teacher_norm = (part.norm(dim=-1).clamp(min=TINY) for part in (student, teacher))
    magnitude = (student_norm.log() - teacher_norm.log()).square()
    each = 1 - cosine
    if kind != "cosine":
        each = each + beta * magnitude
    if kind == "hybrid":
        each = (1 - mse) * each + mse * (student - teacher).square().mean(-1)
    logged = {
        "cos_sim": cosine,
        "dir_loss": 1 - cosine,
        "mag_loss": magnitude,
        "s_magnitude": student_norm,
        "t_magnitude": teacher_norm,
        "mag_ratio": student_norm / teacher_norm,
        "aligned": (cosine > ALIGNED).to(cosine.dtype),
    }
    metrics = {name: part.detach().masked_fill(~kept, 0.0).sum() for name, part in logged.items()}
    return (each if weight is None else each * weight).masked_fill(~kept, 0.0).sum(), metrics


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """cos over the last axis; 0 without gradient if a vector is 0."""
    return (unit(left) * unit(right)).sum(-1)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; those shorter than 1e-8 become 0."""
    length = vectors.norm(dim=-1, keepdim=True)
    return (vectors / length.clamp(min=TINY)).masked_fill(length < TINY, 0.0)
