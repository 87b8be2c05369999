"""Cross-entropy at the positions that have targets, without logits of more than a piece of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kava.shapes import at_least_float32, soft_cap

LOGITS = 1 << 26  # of a piece: rows times vocabulary; in float32 they are 256 MiB


@dataclass(frozen=True)
class Head:
    """Hidden states [n, E] to logits [n, V]: cap tanh(hidden @ weight^T / divisor / cap).

    `layer` computes the product where it is more than a matrix of weights: with adapters of its own, or sharded.
    """

    vocabulary: int
    weight: Tensor | None = None
    layer: Callable[[Tensor], Tensor] | None = None
    divisor: float = 1.0
    cap: float | None = None

    @property
    def rows(self) -> int:
        """How many targets are computed at once."""
        return max(1, LOGITS // self.vocabulary)


def cross_entropy(hidden: Tensor, targets: Tensor, head: Head, rows: int | None = None) -> Tensor:
    """sum_i -log p(target_i | hidden_i); hidden [n, E], targets [n], computed `rows` at a time.

    With a vocabulary of 150,000 the logits of a large batch would be the largest tensor of the step.
    """
    rows = rows or head.rows
    if head.weight is not None:
        dtype, gradients = _product_dtype(hidden, head.weight), torch.is_grad_enabled()
        loss: Tensor = _LinearCrossEntropy.apply(hidden, head.weight, targets, head, rows, dtype, gradients)
        return loss

    def piece(states: Tensor, labels: Tensor) -> Tensor:
        assert head.layer is not None
        logits = soft_cap(head.layer(states) / head.divisor, head.cap)
        return F.cross_entropy(at_least_float32(logits), labels, reduction="sum")

    if len(targets) <= rows:
        return piece(hidden, targets)
    pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.stack([checkpoint(piece, states, labels, use_reentrant=False) for states, labels in pieces]).sum()


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of hidden @ weight^T: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    """Logits become their gradients in place: one tensor of rows x V is held, where autograd would hold three.

    The gradient of the hidden states is ready after the forward pass. If the weight is trained, too, both are computed in
    the backward pass, from logits that are made again: a gradient as large as the weight is not kept from one to the other.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        head: Head,
        rows: int,
        dtype: torch.dtype,
        gradients: bool,
    ) -> Tensor:
        ctx.now = gradients and ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        ctx.head, ctx.rows, ctx.dtype = head, rows, dtype
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        gradient = torch.empty_like(hidden) if ctx.now else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)
            for part, states, labels in _pieces(hidden, targets, rows, dtype):
                loss, slopes = _loss_and_slopes(states @ matrix.T, labels, head, ctx.now)
                total += loss
                if gradient is not None:
                    gradient[part] = slopes.to(dtype) @ matrix
                del slopes  # before the next logits are made
        ctx.save_for_backward(*([gradient] if gradient is not None else [hidden, weight, targets]))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.now:
            return (ctx.saved_tensors[0] * scale, *[None] * 6)
        hidden, weight, targets = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=ctx.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(ctx.dtype)
            for part, states, labels in _pieces(hidden, targets, ctx.rows, ctx.dtype):
                _, slopes = _loss_and_slopes(states @ matrix.T, labels, ctx.head, True)
                slopes = slopes.mul_(scale).to(ctx.dtype)
                if of_hidden is not None:
                    of_hidden[part] = slopes @ matrix
                of_weight.addmm_(slopes.T, states)
                del slopes
        return (of_hidden, of_weight.to(weight.dtype), *[None] * 5)


def _pieces(hidden: Tensor, targets: Tensor, rows: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        yield part, hidden[part].to(dtype), targets[part]


def _loss_and_slopes(logits: Tensor, labels: Tensor, head: Head, slopes: bool) -> tuple[Tensor, Tensor]:
    """sum_i -log p(label_i), and with `slopes` its derivative by the product that is given, in place of it."""
    logits, labels, bend = at_least_float32(logits), labels[:, None], None
    if head.divisor != 1:
        logits.div_(head.divisor)
    if head.cap is not None:
        logits.div_(head.cap).tanh_()
        bend = logits.square().neg_().add_(1) if slopes else None
        logits.mul_(head.cap)
    logits.sub_(logits.amax(1, keepdim=True))
    own = logits.gather(1, labels)
    sums = logits.exp_().sum(1, keepdim=True)
    loss = (sums.log() - own).sum()
    if slopes:
        logits.div_(sums)
        logits.scatter_(1, labels, logits.gather(1, labels) - 1)
        if bend is not None:
            logits.mul_(bend)
        if head.divisor != 1:
            logits.div_(head.divisor)
    return loss, logits
