"""The KV term: the distance of each latent's keys and values to the paired teacher entry."""

from torch import Tensor

from kava.losses.distance import masked_std, scaled


def kv_loss(
    student: Tensor,
    teacher: Tensor,
    kept: Tensor,
    kind: str = "smooth_l1",
    std: bool = True,
    std_scope: str = "sample",
    weight: Tensor | None = None,
    detach: bool = True,
) -> Tensor:
    """One layer's sum over kept slots, heads and D of d(student, sg(teacher)) / std. Keys and values apart.

    L_KV = 1/2 (mean_K + mean_V), each a mean over valid slots x layers x heads x D; the paper's 1/M is inside
    the mean [open: scale]. `std`: one per layer, K and V apart, over this sample's kept slots, heads and D  [ours: per
    sample, so that batches change nothing], or over the whole batch (`std_scope` batch, as the parents do).
    student, teacher [B, H, M, D]; kept [B, H, M]; `weight` [B, H, M] of each entry, with a mean of 1. `detach` False:
    the target is a projection that is trained, too.
    """
    real = kept[..., None]
    dims = (1, 2, 3) if std_scope == "sample" else (0, 1, 2, 3)
    scale = masked_std(teacher, real, dims) if std else None
    loss = scaled(student, teacher, kind, scale, detach) * real
    return (loss if weight is None else loss * weight[..., None]).sum()
