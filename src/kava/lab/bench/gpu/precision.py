"""The loss and its gradients on the device against those of the CPU in float32."""

import copy

import torch

from kava.config import LatentConfig
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup
from kava.lab.bench.gpu.students import SMALL, TOY, measured_loss, objective_of, uneven_batch

LIMITS = {"float32": (1e-4, 1e-3), "half": (2e-2, 1e-1)}  # of a term, of the gradient: in proportion
STD = 0.06  # attention far from uniform


def run(setup: KitSetup, precision: str) -> KitFinding:
    """Packed and unpacked passes on the device; in `half` under autocast, with the weights in float32."""
    cpu, shape = torch.device("cpu"), TOY if setup.tiny else SMALL
    latent = LatentConfig(num_tokens=6, num_iterations=3)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        original = shape.student(KitSetup(cpu, setup.half, setup.tiny, setup.scratch), latent, torch.float32, STD)
        wanted = measured_loss(objective_of(original), uneven_batch(cpu, shape.vocabulary))
        copied, batch = copy.deepcopy(original).to(setup.device), uneven_batch(setup.device, shape.vocabulary)
        autocast = setup.half if precision == "half" else None
        on_device = {
            name: measured_loss(objective_of(copied, packed), batch, autocast)
            for name, packed in (("packed", True), ("unpacked", False))
        }
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    most_of_terms, most_of_gradient = LIMITS[precision]
    terms = {name: loss.term_gap(wanted) for name, loss in on_device.items()}
    gradients = {name: loss.gradient_gap(wanted) for name, loss in on_device.items()}
    text = f"terms off by {max(terms.values()):.0e}, gradient by {max(gradients.values()):.0e} (packed and unpacked)"
    if not (max(terms.values()) <= most_of_terms and max(gradients.values()) <= most_of_gradient):
        raise KitFailure(f"{text}; at most {most_of_terms:g} and {most_of_gradient:g} are rounding")
    dtype = torch.float32 if autocast is None else autocast
    return KitFinding(text, {"dtype": str(dtype).removeprefix("torch."), "terms": terms, "gradient": gradients})
