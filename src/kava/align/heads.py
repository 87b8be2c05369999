"""Maps the heads and head size of a teacher layer to the student's."""

import torch
from torch import Tensor, nn

from kava.errors import ConfigError, ModelError
from kava.registry import check_known
from kava.shapes import at_least_float32

KINDS = ("group_mean", "conv", "matched")


def overlap_map(num_to: int, num_from: int) -> Tensor:
    """[num_to, num_from] with rows summing to 1: row i averages the interval [i F/T, (i+1) F/T), weighted by overlap.

    F = k T: the mean of k neighbours. T = k F: neighbours repeated (0, 0, 1, 1), as in grouped attention. F = T: identity.
    """
    if num_to < 1 or num_from < 1:
        raise ConfigError(f"no map from {num_from} to {num_to} heads (or dimensions)")
    # in units of 1 / (T F): integers until the last division
    low = torch.arange(num_to)[:, None] * num_from
    start = torch.arange(num_from)[None, :] * num_to
    shared = torch.minimum(low + num_from, start + num_to) - torch.maximum(low, start)
    return shared.clamp(min=0).double() / num_from


def head_similarity(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """[H_s, H_t] Pearson correlation of the heads' attention over the real tokens, summed over samples.

    student [B, H_s, N] and teacher [B, H_t, N] at the same tokens; mask [B, N]. Sums of several batches may be added.
    """
    left, right = (_standard(part, mask) for part in (student, teacher))
    return torch.einsum("bin,bjn->ij", left, right)


def match_heads(similarity: Tensor) -> Tensor:
    """[H_s, H_t] rows summing to 1, from similarities [H_s, H_t].

    Every teacher head is assigned to its most similar student head; a student head averages those assigned to it, and
    a student head without any takes its most similar teacher head. So no teacher head is left out.
    """
    shares = torch.zeros_like(similarity, dtype=torch.float64)
    shares[similarity.argmax(0), torch.arange(similarity.shape[1], device=similarity.device)] = 1.0
    unassigned = (shares.sum(1) == 0).nonzero().flatten()
    shares[unassigned, similarity[unassigned].argmax(1)] = 1.0
    return shares / shares.sum(1, keepdim=True)


class HeadDimAdapter(nn.Module):
    """[B, H_t, N, D_t] -> [B, H_s, N, D_s], for the keys (or the values) of one layer:

        y = gain * (M (x W^T + b)) + shift      W [D_s, D_t] for all heads, M [H_s, H_t], gain and shift [H_s, D_s]

    `heads` selects M: group_mean (fixed: means of neighbours, or neighbours repeated), conv (trained, starts as
    group_mean), matched (fixed by `set_shares`; group_mean until then). Equal sizes start as the identity. Otherwise W
    starts as the same kind of average over neighbouring dimensions, which keeps the two halves of a rotary pair apart
    (`init_identity` False: random orthogonal).
    """

    shares: Tensor

    def __init__(
        self,
        teacher_dim: int,
        student_dim: int,
        teacher_heads: int,
        student_heads: int,
        heads: str = "group_mean",
        init_identity: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        check_known("head mixing", heads, KINDS)
        self.takes, self.gives, self.heads = (teacher_heads, teacher_dim), (student_heads, student_dim), heads
        self.size = nn.Linear(teacher_dim, student_dim, bias=bias)
        with torch.no_grad():
            if init_identity:
                self.size.weight.copy_(overlap_map(student_dim, teacher_dim))
            else:
                nn.init.orthogonal_(self.size.weight)
            if bias:
                self.size.bias.zero_()
        shares = overlap_map(student_heads, teacher_heads).to(self.size.weight.dtype)
        if heads == "conv":
            self.shares = nn.Parameter(shares)
        else:
            self.register_buffer("shares", shares)
        self.gain = nn.Parameter(torch.ones(student_heads, student_dim))
        self.shift = nn.Parameter(torch.zeros(student_heads, student_dim))

    @property
    def fixed_shares(self) -> Tensor:
        """[H_s, H_t] head mixing without trained weights, as importance needs it."""
        if self.heads == "conv":
            return overlap_map(self.gives[0], self.takes[0]).to(self.shares)
        return self.shares

    def forward(self, entries: Tensor) -> Tensor:
        if (entries.shape[1], entries.shape[3]) != self.takes:
            raise ModelError(
                f"an adapter for {self.takes[0]} heads of size {self.takes[1]} was given {entries.shape[1]} of "
                f"{entries.shape[3]}"
            )
        with torch.autocast(entries.device.type, enabled=False):  # targets keep full precision
            sized = self.size(entries.to(self.size.weight.dtype))
            mixed = torch.einsum("st,btnd->bsnd", self.shares.to(sized.dtype), sized)
            return mixed * self.gain[:, None] + self.shift[:, None]

    def mixed(self, entries: Tensor) -> Tensor:
        """M x: [B, H_t, N, D_t] -> [B, H_s, N, D_t]."""
        return torch.einsum("st,btnd->bsnd", self.shares.to(entries.dtype), entries)

    @torch.no_grad()
    def set_map(self, weight: Tensor, shift: Tensor) -> None:
        """Makes the output W (M x) + shift; weight [D_s, D_t] for all heads, shift [H_s, D_s]."""
        self.size.weight.copy_(weight)
        if self.size.bias is not None:
            self.size.bias.zero_()
        self.gain.fill_(1.0)
        self.shift.copy_(shift)

    @torch.no_grad()
    def set_shares(self, shares: Tensor) -> None:
        """Sets M to the shares [H_s, H_t] of `match_heads`."""
        if self.heads != "matched" or shares.shape != self.shares.shape:
            raise ModelError(
                f"head shares {list(shares.shape)} were given to a {self.heads} adapter of {list(self.shares.shape)}"
            )
        self.shares.copy_(shares)

    @torch.no_grad()
    def rescale(self, gain: Tensor, shift: Tensor) -> None:
        """Changes the output y to gain * y + shift; both [H_s, D_s]."""
        self.gain.mul_(gain.to(self.gain))
        self.shift.mul_(gain.to(self.shift)).add_(shift.to(self.shift))


def _standard(attention: Tensor, mask: Tensor) -> Tensor:
    """[B, H, N] with mean 0 and norm 1 over the real tokens; 0 where nothing varies."""
    real = mask[:, None, :]
    count = real.sum(2, keepdim=True).clamp(min=1)
    attention = at_least_float32(attention).masked_fill(~real, 0.0)
    attention = (attention - attention.sum(2, keepdim=True) / count).masked_fill(~real, 0.0)
    norm = attention.norm(dim=2, keepdim=True)
    return attention / torch.where(norm > 0, norm, 1.0)
