"""Projections between the teacher's and the student's width: one map for keys and one for values."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from kava.errors import CheckpointError, ConfigError, ModelError
from kava.files import write_bytes
from kava.registry import check_known

INITS: dict[str, Callable[..., Tensor]] = {
    "xavier": nn.init.xavier_uniform_,
    "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "normal": partial(nn.init.normal_, std=0.02),
}
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

    def train(self, mode: bool = True) -> "KVDimensionProjector":
        return super().train(mode and self.trainable)

    def forward(self, keys: Tensor, values: Tensor, teacher: str | None = None) -> tuple[Tensor, Tensor]:
        """Projected keys and values; `teacher` may be omitted if there is only one."""
        name = self._name(teacher)
        return _projected(
            (self.adapters[name]["K"], self.adapters[name]["V"]),  # type: ignore[index]
            (keys, values),
            self.teacher_dims[name],
            f"the projector of teacher {name!r}",
            "build it from the sizes that kava.backbone.extractor.probe detects, not from the model's config",
        )

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

    def last(self, part: str) -> nn.Linear:
        """The last map of the branch "k" or "v" of the only teacher."""
        return self._branches(None)[part.upper()][-1]  # type: ignore[index,return-value]

    @torch.no_grad()
    def rescale(self, part: str, gain: Tensor, shift: Tensor) -> None:
        """Changes the output y of the branch "k" or "v" of the only teacher to gain * y + shift, per dimension."""
        last = self.last(part)
        last.weight.mul_(gain.to(last.weight)[:, None])
        last.bias.mul_(gain.to(last.bias)).add_(shift.to(last.bias))

    def count_parameters(self, trainable_only: bool = False) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable_only)

    def text(self) -> str:
        """Sizes, parameters, device and dtype, in lines."""
        weight = _weight(self)
        sizes = ", ".join(str(width) for width in self.teacher_dims.values())
        return (
            f"[OK] Projector initialized:\n   Architecture: {sizes} -> {self.student_dim}\n"
            f"   Total params: {self.count_parameters():,}\n"
            f"   Trainable params: {self.count_parameters(trainable_only=True):,}\n"
            f"   Device: {weight.device}\n   Dtype: {weight.dtype}"
        )

    def save(self, path: str | Path) -> Path:
        """Writes weights and settings atomically into one file (in a folder: projector.safetensors)."""
        path = _file(path)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        write_bytes(path, to_bytes(weights, metadata={"projector": json.dumps(self.config)}))
        return path

    def load(self, path: str | Path) -> None:
        """Loads saved weights; names and shapes must match exactly."""
        path = _file(path)
        self._fill(path, _read(path)[1], assign=False)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "KVDimensionProjector":
        """The saved projector, in evaluation mode."""
        path = _file(path)
        settings, weights = _read(path)
        if settings is None:
            raise CheckpointError(f"{path}: holds no projector's settings", "give the file that projector.save wrote")
        with torch.device("meta"):  # draws no weights
            projector = cls(**json.loads(settings))
        projector._fill(path, weights, assign=True)
        return projector.eval()

    def _fill(self, path: Path, saved: dict[str, Tensor], assign: bool) -> None:
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(saved)) or [n for n in own if own[n].shape != saved[n].shape]
        if wrong:
            raise CheckpointError(
                f"{path}: not the weights of this projector ({wrong[0]} is missing, unexpected or of another shape)",
                "KVDimensionProjector.from_pretrained(path) builds the one that fits",
            )
        self.load_state_dict(saved, assign=assign)

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
        for number, what in ((num, "number of maps"), (student_dim, "student_dim"), (teacher_dim, "teacher_dim")):
            _size(number, what)
        self.K, self.V = (nn.ModuleList(nn.Linear(student_dim, teacher_dim) for _ in range(num)) for _ in "KV")
        self.student_dim, self.teacher_dim = student_dim, teacher_dim
        initialise(self, init_method)
        self.requires_grad_(trainable)

    def last(self, part: str, index: int) -> nn.Linear:
        """Map number `index` of "k" or "v"."""
        return getattr(self, part.upper())[index]  # type: ignore[no-any-return]

    def forward(self, keys: Tensor, values: Tensor, index: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values through map number `index`."""
        return _projected((self.K[index], self.V[index]), (keys, values), self.student_dim, "the projector")


def initialise(module: nn.Module, method: str) -> None:
    """Xavier uniform, Kaiming normal, or normal of std 0.02 for every linear weight; biases 0."""
    check_known("init_method", method, INITS)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            INITS[method](part.weight)
            nn.init.zeros_(part.bias)


def _weight(module: nn.Module) -> nn.Parameter:
    """Any weight: all have the same dtype and device."""
    return next(module.parameters())


def _projected(
    maps: tuple[nn.Module, nn.Module], pair: tuple[Tensor, Tensor], width: int, owner: str, hint: str | None = None
) -> tuple[Tensor, Tensor]:
    """Keys and values through one map each, once their width is known to be right."""
    for what, entries in zip(("keys", "values"), pair, strict=True):
        if entries.shape[-1] != width:
            raise ModelError(f"{owner} takes {what} of width {width}, not {entries.shape[-1]}", hint)
    keys, values = (project(entries.to(_weight(project).dtype)) for project, entries in zip(maps, pair, strict=True))
    return keys, values


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


def _read(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """The settings as JSON, if the file has any, and the weights."""
    try:
        with safe_open(path, "pt") as file:
            settings = (file.metadata() or {}).get("projector")
            return settings, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})", "give the file that projector.save wrote") from error
