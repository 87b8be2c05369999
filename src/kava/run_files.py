"""What the files of a run's folder hold: the types of their keys, for everything that reads one back. Level 0: no torch.

recipe.yaml, meta.json, log.jsonl, results_<set>.yaml, predictions_<set>.jsonl, kept.json and, of several teachers,
alignment.json, routing.jsonl, routing_samples.json, layer_loss.jsonl. A key that is missing here may hold anything; a result
may come from another script, so that hardly any key must be there.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from kava.config.typed_file import Count, Finite, Record, read_dict, read_dicts

AGAIN = "the file is torn or of another kind; make it again"
Settings = dict[str, Any]
Positive = Annotated[int, Field(gt=0)]


def _time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Time = Annotated[str, AfterValidator(_time)]


def _has_step(line: dict[str, Any]) -> dict[str, Any]:
    step = line.get("step")
    if step is None or step < 0 or not float(step).is_integer():
        raise ValueError(f"step is {step!r}, not the number of an update")
    return line


# a loss may have been NaN: readers leave that out
LogLine = Annotated[dict[str, float | None], AfterValidator(_has_step)]


class SteppedLine(Record):
    """A line of any log of a run."""

    step: Count


class StoredModel(Record):
    name: str | None = None


class StoredDataset(Record):
    name: str | None = None


class StoredLatent(Record):
    method: str | None = None
    num_tokens: Count | None = None
    num_iterations: Count | None = None


class StoredLoss(Record):
    alpha1_codi: Finite | None = None
    alpha2_kv: Finite | None = None
    kv_loss_type: str | None = None


class StoredRkv(Record):
    method: str | None = None
    shuffle: str | None = None


class StoredExplicit(Record):
    enabled: bool | None = None
    target_len: Count | None = None


class StoredMixture(Record):
    teachers: list[str | dict[str, Any]] = Field([])
    fusion: str | None = None


class StoredTraining(Record):
    start_from: str | None = None
    max_steps: Count | None = None
    epochs: Finite | None = None


class StoredSystem(Record):
    seed: int | None = None


class StoredRecipe(Record):
    """The sections of a recipe as tables and pages read them; `load_recipe` checks every key."""

    about: Settings = Field({})
    model: StoredModel = StoredModel()
    dataset: StoredDataset = StoredDataset()
    latent: StoredLatent = StoredLatent()
    loss: StoredLoss = StoredLoss()
    rkv: StoredRkv = StoredRkv()
    explicit: StoredExplicit = StoredExplicit()
    teacher: Settings = Field({})
    mixture: StoredMixture = StoredMixture()
    projector: Settings = Field({})
    lora: Settings = Field({})
    training: StoredTraining = StoredTraining()
    system: StoredSystem = StoredSystem()


class DataFacts(Record):
    sha256: str | None = None
    examples: Count | None = None


class RunMeta(Record):
    """meta.json."""

    finished: bool | None = None
    started: Time | None = None
    steps: Count | None = None
    seconds: Finite | None = None
    best_accuracy: Finite | None = None
    best_ce: Finite | None = None
    data: DataFacts | None = None
    versions: dict[str, str | None] | None = None
    git: str | None = None
    platform: str | None = None
    command: list[str] | None = None
    device: str | None = None
    threads: Count | None = None
    trained_parameters: Count | None = None
    all_parameters: Count | None = None
    effective_batch_size: Count | None = None


class StepCount(Record):
    """The problems of one number of steps."""

    correct: Count
    total: Positive


class ItemsRight(Record):
    """How many items are right with one of n answers chosen."""

    n: Positive
    correct: Count
    total: Positive


class ResultFields(Record):
    """results_<set>.yaml."""

    dataset: str | None = None
    mode: str | None = None
    cue: str | None = None
    ablate: str | None = None
    unit: str | None = None
    metric: str | None = None
    note: str | None = None
    accuracy: Finite | None = None
    exact_match: Finite | None = None
    correct: Annotated[Finite, Field(ge=0)] | None = None
    total: Positive | None = None
    total_samples: Positive | None = None
    num_examples: Positive | None = None
    set_size: Count | None = None
    avg_forward_passes: Finite | None = None
    forward_passes_mean: Finite | None = None
    std_forward_passes: Finite | None = None
    by_steps: dict[int | Annotated[str, Field(pattern=r"^\d+$")], StepCount] | None = None
    losses: dict[str, float | None] | None = None
    losses_items: dict[str, Count] | None = None
    data_sha256: str | None = None
    seed: int | None = None
    config: str | None = None
    step: Count | None = None
    max_new_tokens: Count | None = None
    temperature: Finite | None = None
    samples: Positive | None = None
    pass_at_k: dict[int | Annotated[str, Field(pattern=r"^\d+$")], Finite] | None = None
    maj_at_n: ItemsRight | None = None
    best_at_n: ItemsRight | None = None
    versions: dict[str, str | None] | None = None


class Prediction(Record):
    """A line of predictions_<set>.jsonl."""

    id: str | int
    correct: bool


class KeptExample(Record):
    """The tokens of one chain of thought; `kept`: compressor -> layer -> head -> their indices."""

    id: str | int
    question: str
    tokens: list[str]
    is_result: list[bool]
    kept: dict[str, list[list[list[Count]]]]


class KeptTokens(Record):
    """kept.json."""

    keep: Count | None = None
    resampled: list[str] = Field([])
    examples: Annotated[list[KeptExample], Field(min_length=1)]


class RoutingLine(SteppedLine):
    """A line of routing.jsonl."""

    weights: dict[str, Finite]
    by_layer: list[list[Finite]] | None = None
    entropy: float | None = None
    temperature: float | None = None


class SampledWeights(Record):
    id: str | int
    task: str
    weights: list[Finite]


class SampledRouting(Record):
    """routing_samples.json."""

    step: Count
    teachers: list[str]
    samples: Annotated[list[SampledWeights], Field(min_length=1)]


class LayerLossLine(SteppedLine):
    """A line of layer_loss.jsonl: keys, values, codes."""

    k: list[float | None] = Field([])
    v: list[float | None] = Field([])
    z: list[float | None] = Field([])


class AlignedText(Record):
    text: str
    student: list[str]
    teacher: list[str]
    iou: list[list[Finite]]


class AlignedTeacher(Record):
    """`layer_map`: [teacher layer, weight] pairs of each student layer."""

    coverage: float | None = None
    num_layers: Count
    layer_map: list[list[list[Finite]]]
    example: AlignedText | None = None


class Alignments(Record):
    """alignment.json."""

    student_layers: Count
    teachers: dict[str, AlignedTeacher]


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json; empty where there is none."""
    path = folder / "meta.json"
    return read_dict(path, RunMeta, AGAIN) if path.is_file() else {}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; [] without one."""
    path = folder / "log.jsonl"
    return read_dicts(path, LogLine, AGAIN) if path.is_file() else []
