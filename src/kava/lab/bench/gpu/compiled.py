"""torch.compile of the decoder: every pass becomes one graph, and terms and gradients stay what they are."""

import copy
import time
from functools import partial
from importlib.util import find_spec

import torch

from kava.config import LatentConfig
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup
from kava.lab.bench.gpu.students import SMALL, TOY, measured_loss, objective_of, uneven_batch
from kava.lab.bench.timing import ratio, take_turns
from kava.lab.selfcheck.context import Skipped

LIMIT = 1e-3


def run(setup: KitSetup) -> KitFinding:
    """The loss of a small student in float32, plain and compiled (in toy sizes without generating code)."""
    if not setup.tiny and find_spec("triton") is None:
        raise Skipped("the package triton is not installed")
    shape = TOY if setup.tiny else SMALL
    model = shape.student(setup, LatentConfig(num_tokens=6, num_iterations=3), torch.float32)
    batch = uneven_batch(setup.device, shape.vocabulary)
    compiled = copy.deepcopy(model)
    compiled.decoder.compile(backend="eager" if setup.tiny else "inductor")
    ways = {
        name: partial(measured_loss, objective_of(each), batch)
        for name, each in (("plain", model), ("compiled", compiled))
    }
    began = time.perf_counter()
    compiled_loss = ways["compiled"]()
    seconds = time.perf_counter() - began
    wanted = ways["plain"]()
    gaps = compiled_loss.term_gap(wanted), compiled_loss.gradient_gap(wanted)
    if not max(gaps) <= LIMIT:
        raise KitFailure(f"terms off by {gaps[0]:.0e}, gradient by {gaps[1]:.0e}; at most {LIMIT:g} is rounding")
    times = take_turns(ways, 3, setup.device)
    speed = ratio(times["plain"].wall, times["compiled"].wall)
    text = f"off by {max(gaps):.0e}; compiled in {seconds:.0f} s, then {speed:.2f} x as fast"
    return KitFinding(text, {"gap": max(gaps), "compile_seconds": seconds, "speed_up": speed})
