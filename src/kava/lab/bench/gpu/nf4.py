"""A frozen model in 4-bit NF4: read as a teacher is, near the whole one, in a quarter of its memory."""

from importlib.util import find_spec

import torch

from kava.backbone.load import load_foreign
from kava.backbone.model import Backbone
from kava.config import LatentConfig, ModelConfig, TeacherSpec
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup
from kava.lab.bench.gpu.students import MEDIUM, SMALL, uneven_batch
from kava.lab.selfcheck.context import Skipped

LEAST_COSINE = 0.9  # of a token's keys and values in the first layer, before errors add up


def run(setup: KitSetup) -> KitFinding:
    """A random model, saved, and read again whole and in NF4."""
    if find_spec("bitsandbytes") is None:
        raise Skipped("the package bitsandbytes is not installed")
    shape = SMALL if setup.tiny else MEDIUM
    folder = setup.scratch / "whole"
    lm = shape.student(setup, LatentConfig(num_tokens=0, num_iterations=0), torch.float32).causal_lm
    lm.set_attn_implementation("sdpa")
    lm.save_pretrained(folder)
    dtype = "float32" if setup.device.type == "cpu" else str(setup.half).removeprefix("torch.")
    specs = (
        TeacherSpec.model_validate({"model": str(folder), "dtype": dtype, "quantization": kind})
        for kind in ("none", "nf4")
    )
    whole, quantised = (load_foreign(spec, ModelConfig(), setup.device) for spec in specs)
    batch = uneven_batch(setup.device, shape.vocabulary)
    cosine = _first_layer_cosine(whole, quantised, batch["question"], batch["question_mask"])
    bytes_of = {name: _block_bytes(model) for name, model in (("whole", whole), ("nf4", quantised))}
    text = f"cosine {cosine:.3f} in the first layer; layers {bytes_of['whole'] / bytes_of['nf4']:.1f} x smaller"
    if not cosine >= LEAST_COSINE:
        raise KitFailure(f"{text}; a cosine of at least {LEAST_COSINE} is near")
    return KitFinding(text, {"cosine": cosine, "layer_bytes": bytes_of})


@torch.no_grad()
def _first_layer_cosine(whole: Backbone, quantised: Backbone, ids: torch.Tensor, mask: torch.Tensor) -> float:
    passes = [model.run_text(ids, mask) for model in (whole, quantised)]
    pairs = [(getattr(passes[0], kind)[0], getattr(passes[1], kind)[0]) for kind in ("keys", "values")]
    real = mask[:, None].expand(-1, pairs[0][0].shape[1], -1)
    alike = [torch.cosine_similarity(exact.float(), near.float(), dim=-1)[real] for exact, near in pairs]
    return float(torch.cat(alike).mean())


def _block_bytes(model: Backbone) -> int:
    """Bytes of all weights but the embedding, which is not quantised."""
    skipped = id(model.causal_lm.get_input_embeddings().weight)
    weights = {id(weight): weight for weight in model.causal_lm.parameters()}
    return sum(weight.numel() * weight.element_size() for key, weight in weights.items() if key != skipped)
