"""Rotary embedding: angles, rotation of keys and its inverse; half-split layout, as in transformers.

    rotated = k cos + rot(k) sin        rot(k) = [-second half, first half]
    k = (rotated cos - rot(rotated) sin) / (cos^2 + sin^2)

Dimensions i and i + r/2 are a pair; dimensions from r on are not rotated (partial rotary).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.errors import ConfigError, ModelError
from kava.registry import check_known
from kava.shapes import at_least_float32

METHODS = ("none", "linear", "ntk", "dynamic")


@dataclass(frozen=True)
class Rotary:
    """A model's frequencies [r/2], and the factor of its cosines and sines.

    limit  number of tokens up to which the frequencies hold (dynamic, longrope); None: no limit
    """

    inv_freq: Tensor
    factor: float = 1.0
    limit: int | None = None

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, r] at positions [B, T], integer or fractional; float32 or better."""
        if self.limit is not None and positions.numel() and float(positions.max()) > self.limit - 1:
            raise ModelError(
                f"position {float(positions.max()):g} was asked of a rotary embedding whose frequencies change beyond "
                f"{self.limit} tokens",
                f"keep question, steps and answer below {self.limit} tokens (dataset.max_length), or take a model without "
                "dynamic or longrope scaling",
            )
        angle = positions[:, None, :, None] * at_least_float32(self.inv_freq.to(positions.device))
        angles = torch.cat([angle, angle], dim=-1)
        return angles.cos() * self.factor, angles.sin() * self.factor


def rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Keys [B, H, T, D] rotated by cos and sin [B, 1, T, r]; computed in the wider type, returned in that of the keys."""
    head, tail, cos, sin = _split(keys, cos, sin)
    return _joined(head * cos + _rot(head) * sin, tail, keys)


def unrotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Inverse of `rotate`, also with a factor (cos^2 + sin^2 = factor^2)."""
    head, tail, cos, sin = _split(keys, cos, sin)
    return _joined((head * cos - _rot(head) * sin) / (cos.square() + sin.square()), tail, keys)


def _split(keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = cos.shape[-1]
    if width > keys.shape[-1] or width % 2:
        raise ModelError(f"a rotary embedding of {width} dimensions cannot turn keys of size {keys.shape[-1]}")
    work = torch.promote_types(at_least_float32(keys).dtype, cos.dtype)
    return keys[..., :width].to(work), keys[..., width:], cos.to(work), sin.to(work)


def _rot(head: Tensor) -> Tensor:
    first, second = head.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _joined(head: Tensor, tail: Tensor, keys: Tensor) -> Tensor:
    head = head.to(keys.dtype)
    return torch.cat([head, tail], dim=-1) if tail.shape[-1] else head


def scaled(
    base: float,
    size: int,
    method: str = "none",
    teacher_len: int = 1,
    student_len: int = 1,
    exponent: float | None = None,
    factor: float = 1.0,
) -> Rotary:
    """The frequencies base^(-2i/size) of a model for `teacher_len` tokens, scaled for texts of `student_len`.

    With s = student_len / teacher_len:

    none     unchanged
    linear   frequencies / s
    ntk      base s^e
    dynamic  base (f s - (f - 1))^e if s > 1, else unchanged: transformers' rule, f being its `factor`

    e is size / (size - 2), so that the slowest frequency is divided by s exactly; `exponent` replaces it (older texts
    use 2/3). s = 1 changes nothing.
    """
    check_known("rotary scaling", method, METHODS)
    if size < 2 or size % 2 or base <= 0 or teacher_len < 1 or student_len < 1:
        raise ConfigError(
            f"no rotary embedding of base {base}, size {size}, lengths {teacher_len} and {student_len}",
            "the size is even, the rest is positive",
        )
    ratio = student_len / teacher_len
    growth = {"ntk": ratio, "dynamic": max(1.0, factor * ratio - (factor - 1)) if ratio > 1 else 1.0}.get(method, 1.0)
    if growth != 1 and exponent is None and size == 2:
        raise ConfigError(f"{method} scaling divides by size - 2, and the size is 2", "give an exponent")
    if growth != 1:
        base = base * growth ** (size / (size - 2) if exponent is None else exponent)
    inv_freq = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    return Rotary(inv_freq / ratio if method == "linear" else inv_freq)
