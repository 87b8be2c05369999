"""projector.safetensors: what the objective trains or has measured beside the student (projectors, adapters, router)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from kava.backbone.artifact import check_numbers
from kava.errors import CheckpointError
from kava.files import usual_mode
from kava.objective.objective import Objective

FILE = "projector.safetensors"
TRAINING_ONLY = "aux_terms.step_decoder."  # beginning of names that a checkpoint has and a finished student has not
FORMER = (  # beginnings of names in files of earlier versions, and the names of today
    ("foreign.mixture.", "source.mixture."),
    ("mixture.", "source.mixture."),
    ("bridge.", "compare."),
    ("codi_map.", "aux_terms.codi.project."),
    ("reference", "compare.reference"),
    ("source.mixture.began", "source.mixture.initial_kv_loss"),
)


def save(objective: Objective, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes the file where there is anything to write; `state`: in place of the objective's."""
    state = objective.aux_state() if state is None else state
    weights = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if weights:
        save_file(weights, folder / FILE)
        usual_mode(folder / FILE)


@torch.no_grad()
def load(objective: Objective, folder: Path, fresh: tuple[str, ...] = ()) -> None:
    """Copies it in: names and shapes must be exactly those of the objective.

    Names that begin with `fresh` are left as they are: a new stage's own.
    """
    path = folder / FILE
    wanted = {name: weight for name, weight in objective.aux_state().items() if not name.startswith(fresh)}
    if not wanted:
        return
    try:
        saved = {_name_today(name): weight for name, weight in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})", "the checkpoint is torn; use another") from error
    saved = {name: weight for name, weight in saved.items() if not name.startswith(fresh)}
    if wrong := sorted(set(wanted) ^ set(saved)) or [n for n in wanted if wanted[n].shape != saved[n].shape]:
        raise CheckpointError(
            f"{path}: {wrong[0]} is missing, unexpected or of another shape",
            "recipe.yaml beside it must be the one the run was started with, and the teacher the same",
        )
    check_numbers({name: saved[name] for name, weight in wanted.items() if isinstance(weight, nn.Parameter)}, path)
    for name, weight in wanted.items():
        weight.copy_(saved[name])


def _name_today(name: str) -> str:
    for former, today in FORMER:
        if name.startswith(former):
            name = today + name.removeprefix(former)
    return name
