"""The CODI term: hidden states at the last cue token, student against teacher."""

import torch
from torch import Tensor

from kava.losses.distance import masked_std, scaled


def codi_loss(
    student: Tensor,
    teacher: Tensor,
    kind: str = "smooth_l1",
    layerwise_std: bool = True,
    std_scope: str = "sample",
) -> Tensor:
    """Sum over samples, layers 1..L (not the embeddings [known: PCCoT]) and width of d(student, sg(teacher)) / std.

    std of the teacher: one per layer (`layerwise_std`) or one over all layers [known: PCCoT], per sample [ours] or over
    the batch (`std_scope` batch, the parents' way). student, teacher [B, L, E].
    """
    dims = (2,) if layerwise_std else (1, 2)
    std = masked_std(teacher, torch.ones_like(teacher, dtype=torch.bool), dims if std_scope == "sample" else (0, *dims))
    return scaled(student, teacher, kind, std).sum()
