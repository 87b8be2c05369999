"""Projections between the teacher's and the student's width: one map for keys and one for values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kava.errors import CheckpointError, ConfigError, ModelError
from kava.files import PARTIAL, usual_mode

INITS = ("xavier", "kaiming", "normal")
FILE = "projector.safetensors"


class KVDimensionProjector(nn.Module):
    """Teacher entries [..., d_t] -> [..., d_s]: per teacher one branch for keys and one for values,

        LayerNorm(d_t) -> Linear(d_t, r d_t) -> SiLU -> Dropout -> Linear(r d_t, d_s)

    2 (2 d_t + r d_t^2 + r d_t + r d_t d_s + d_s) parameters for each teacher. `adapters[name]["K"]` and `["V"]` are the
    branches of a teacher; with one teacher they are also `adapter_K` and `adapter_V`. All weights exist from the start,
    so that an optimiser sees them. Not trainable means frozen, and without dropout.
    """

    def __init__(
        self,
        teacher_configs: dict[str, dict[str, int]],
        student_d_model: int,
        mlp_ratio: float = 1.0,
        dropout: float = 0.1,
        init_method: str = "xavier",
        trainable: bool = True,
    ):
        super().__init__()
        self.config: dict[str, Any] = {
            "teacher_configs": teacher_configs,
            "student_d_model": student_d_model,
            "mlp_ratio": mlp_ratio,
            "dropout": dropout,
            "init_method": init_method,
            "trainable": trainable,
        }
        self.teacher_dims = _teacher_dims(teacher_configs)
        self.student_dim = _size(student_d_model, "student_d_model")
        self.trainable = trainable
        if not 0 <= dropout < 1:
            raise ConfigError(f"the projector's dropout is {dropout}, not a number from 0 to below 1")
        self.adapters = nn.ModuleDict()
        for name, width in self.teacher_dims.items():
            hidden = _size(int(mlp_ratio * width), f"mlp_ratio {mlp_ratio} times the teacher's width {width}")
            branches = {part: _branch(width, hidden, self.student_dim, dropout) for part in "KV"}
            self.adapters[name] = nn.ModuleDict(branches)
        initialise(self, init_method)
        self.requires_grad_(trainable)
        self.train()
        self.try_out()

    @property
    def adapter_K(self) -> nn.Sequential:
        return self._branches(None)["K"]  # type: ignore[return-value]

    @property
    def adapter_V(self) -> nn.Sequential:
        return self._branches(None)["V"]  # type: ignore[return-value]

    def train(self, mode: bool = True) -> KVDimensionProjector:
        return super().train(mode and self.trainable)

    def forward(self, keys: Tensor, values: Tensor, teacher: str | None = None) -> tuple[Tensor, Tensor]:
        """Projected keys and values; `teacher` may be omitted if there is only one."""
        branches = self._branches(teacher)
        width = self.teacher_dims[self._name(teacher)]
        for what, entries in (("keys", keys), ("values", values)):
            if entries.shape[-1] != width:
                raise ModelError(
                    f"the projector of teacher {self._name(teacher)!r} takes {what} of width {width}, not "
                    f"{entries.shape[-1]}",
                    "build it from the sizes that kava.backbone.extractor.probe detects, not from the model's config",
                )
        dtype = _weight(branches).dtype
        return branches["K"](keys.to(dtype)), branches["V"](values.to(dtype))

    @torch.no_grad()
    def try_out(self) -> None:
        """Checks every branch with a pass of zeros, in evaluation mode so that nothing is drawn."""
        was = self.training
        self.eval()
        for name, width in self.teacher_dims.items():
            weight = _weight(self.adapters[name])
            probe = torch.zeros(1, 2, width, dtype=weight.dtype, device=weight.device)
            for part, out in zip("KV", self(probe, probe, name), strict=True):
                expected = (1, 2, self.student_dim)
                if tuple(out.shape) != expected or not (out.is_meta or bool(out.isfinite().all())):
                    raise ModelError(
                        f"adapter_{part} of teacher {name!r} gives {tuple(out.shape)}, not finite {expected}"
                    )
        self.train(was)

    @torch.no_grad()
    def rescale(self, part: str, gain: Tensor, shift: Tensor) -> None:
        """Changes the output y of the branch "k" or "v" of the only teacher to gain * y + shift, per dimension."""
        last: nn.Linear = self._branches(None)[part.upper()][-1]  # type: ignore[index,assignment]
        last.weight.mul_(gain.to(last.weight)[:, None])
        last.bias.mul_(gain.to(last.bias)).add_(shift.to(last.bias))

    def count_parameters(self, trainable_only: bool = False) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable_only)

    def text(self) -> str:
        """Sizes, parameters, device and dtype, in lines."""
        weight = _weight(self)
        sizes = ", ".join(str(width) for width in self.teacher_dims.values())
        return "\n".join(
            (
                "[OK] Projector initialized:",
                f"   Architecture: {sizes} -> {self.student_dim}",
                f"   Total params: {self.count_parameters():,}",
                f"   Trainable params: {self.count_parameters(trainable_only=True):,}",
                f"   Device: {weight.device}",
                f"   Dtype: {weight.dtype}",
            )
        )

    def save(self, path: str | Path) -> Path:
        """Writes weights and settings atomically into one file (in a folder: projector.safetensors)."""
        path = _file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f"{PARTIAL}{path.name}"
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        try:
            save_file(weights, partial, metadata={"projector": json.dumps(self.config)})
            usual_mode(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def load(self, path: str | Path) -> None:
        """Loads saved weights; names and shapes must match exactly."""
        self._fill(_file(path), assign=False)

    def _fill(self, path: Path, assign: bool) -> None:
        with _readable(path):
            saved = load_file(path)
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(saved)) or [n for n in own if own[n].shape != saved[n].shape]
        if wrong:
            raise CheckpointError(
                f"{path}: not the weights of this projector ({wrong[0]} is missing, unexpected or of another shape)",
                "KVDimensionProjector.from_pretrained(path) builds the one that fits",
            )
        self.load_state_dict(saved, assign=assign)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> KVDimensionProjector:
        """The saved projector, in evaluation mode."""
        path = _file(path)
        with torch.device("meta"):  # draws no weights
            projector = cls(**_settings(path))
        projector._fill(path, assign=True)
        return projector.eval()

    def _name(self, teacher: str | None) -> str:
        names = list(self.teacher_dims)
        if teacher is None and len(names) == 1:
            return names[0]
        if teacher not in self.teacher_dims:
            raise ConfigError(f"the projector has no teacher {teacher!r}", "it has: " + ", ".join(names))
        return teacher

    def _branches(self, teacher: str | None) -> nn.ModuleDict:
        return self.adapters[self._name(teacher)]  # type: ignore[return-value]


class StudentProjector(nn.Module):
    """Student entries [..., d_s] -> [..., d_t]: `num` pairs of Linear maps, `K[i]` and `V[i]`.

    The target is the teacher's output itself, so that it cannot collapse.
    """

    def __init__(
        self, num: int, student_dim: int, teacher_dim: int, init_method: str = "xavier", trainable: bool = True
    ):
        super().__init__()
        _size(num, "number of maps")
        _size(student_dim, "student_dim")
        _size(teacher_dim, "teacher_dim")
        self.K = nn.ModuleList(nn.Linear(student_dim, teacher_dim) for _ in range(num))
        self.V = nn.ModuleList(nn.Linear(student_dim, teacher_dim) for _ in range(num))
        self.student_dim, self.teacher_dim = student_dim, teacher_dim
        initialise(self, init_method)
        self.requires_grad_(trainable)

    def forward(self, keys: Tensor, values: Tensor, index: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values through map number `index`."""
        for what, entries in (("keys", keys), ("values", values)):
            if entries.shape[-1] != self.student_dim:
                raise ModelError(f"the projector takes {what} of width {self.student_dim}, not {entries.shape[-1]}")
        dtype = _weight(self).dtype
        return self.K[index](keys.to(dtype)), self.V[index](values.to(dtype))


def initialise(module: nn.Module, method: str) -> None:
    """Xavier uniform, Kaiming normal, or normal of std 0.02 for every linear weight; biases 0."""
    if method not in INITS:
        raise ConfigError(f"unknown init_method {method!r}", "known: " + ", ".join(INITS))
    for part in module.modules():
        if isinstance(part, nn.Linear):
            if method == "xavier":
                nn.init.xavier_uniform_(part.weight)
            elif method == "kaiming":
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            else:
                nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)


def _weight(module: nn.Module) -> nn.Parameter:
    """Any weight: all have the same dtype and device."""
    return next(module.parameters())


def _branch(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, out)
    )


def _teacher_dims(configs: dict[str, dict[str, int]]) -> dict[str, int]:
    if not configs:
        raise ConfigError("the projector has no teacher", 'teacher_configs={"teacher": {"d_model": 7168}}')
    for name, config in configs.items():
        if not name or "." in name or hasattr(nn.ModuleDict, name):
            raise ConfigError(f"a projector's teacher cannot be called {name!r}", "choose a plain word without a dot")
        if set(config) != {"d_model"}:
            raise ConfigError(f"teacher {name!r} has keys {sorted(config)}, not d_model alone", '{"d_model": 7168}')
    return {name: _size(config["d_model"], f"d_model of teacher {name!r}") for name, config in configs.items()}


def _size(number: int, what: str) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"{what}: {number!r} is not a whole number above 0")
    return number


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A CheckpointError for a file that cannot be read inside the block."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})", "give the file that projector.save wrote") from error


def _settings(path: Path) -> dict[str, Any]:
    with _readable(path), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if "projector" not in metadata:
        raise CheckpointError(f"{path}: holds no projector's settings", "give the file that projector.save wrote")
    return json.loads(metadata["projector"])
