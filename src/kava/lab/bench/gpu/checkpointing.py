"""Gradient checkpointing on the device: the same loss and gradients, in less memory."""

from functools import partial

import torch

from kava.backbone.kv import keywords_arrive
from kava.backbone.recompute import recompute_layers
from kava.config import LatentConfig
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup
from kava.lab.bench.gpu.students import MEDIUM, TOY, measured_loss, objective_of, uneven_batch
from kava.lab.bench.timing import peak_memory
from kava.lab.selfcheck.context import Skipped

LIMIT = 1e-5


def run(setup: KitSetup) -> KitFinding:
    """Two losses of one student in float32, the second with its layers recomputed in the backward pass."""
    shape = TOY if setup.tiny else MEDIUM
    model = shape.student(setup, LatentConfig(num_tokens=6, num_iterations=3), torch.float32)
    if not keywords_arrive(model.family):
        raise Skipped("gradient checkpointing needs transformers 5 for this family")
    model.train()
    batch, objective = uneven_batch(setup.device, shape.vocabulary), objective_of(model)
    run_once = partial(measured_loss, objective, batch)
    wanted, whole = run_once(), peak_memory(run_once, setup.device)
    recompute_layers(model.causal_lm, model.family)
    recomputed_loss, recomputed = run_once(), peak_memory(run_once, setup.device)
    gaps = recomputed_loss.term_gap(wanted), recomputed_loss.gradient_gap(wanted)
    if not max(gaps) <= LIMIT:
        raise KitFailure(f"terms off by {gaps[0]:.0e}, gradient by {gaps[1]:.0e}; at most {LIMIT:g} is rounding")
    assert whole is not None
    assert recomputed is not None
    text = f"off by {max(gaps):.0e}; peak {whole / 2**20:.4g} -> {recomputed / 2**20:.4g} MiB"
    return KitFinding(text, {"gap": max(gaps), "peak_bytes": whole, "peak_bytes_checkpointed": recomputed})
