"""A recipe's objective: its view of the student, its source of targets, and how the two are compared."""

from kava.backbone.families import rotated_alike
from kava.backbone.load import step_decoder
from kava.backbone.model import Backbone, LatentModel
from kava.compress import Compressor, compressor_of
from kava.config import LossConfig, Recipe
from kava.errors import ConfigError
from kava.objective.aux_terms import AuxTerm, CodiTerm, cka_layers, make_aux_terms
from kava.objective.compare import Aggregated, BySlot, Codes, Comparison, PerLayer
from kava.objective.dim_scale import DimScale
from kava.objective.distances import OfCodes, make_distance
from kava.objective.objective import Objective
from kava.objective.pairing import Pairing
from kava.objective.stages import StagedSlots
from kava.objective.step_decoder import NAME as STEP_DECODER
from kava.objective.step_decoder import StepDecoderTerm
from kava.objective.student import LatentSlots, TextColumns
from kava.objective.targets import MixtureOfTeachers, OwnTeacher, SeparateTeacher, TargetSource
from kava.teachers.base import Teacher
from kava.teachers.teacher_set import TeacherSet


def make_objective(recipe: Recipe, model: LatentModel, teacher: Teacher | TeacherSet | None = None) -> Objective:
    """view x source: latent slots or text columns, against the student's own teacher mode, one teacher or a mixture.

    `teacher` None: on the latent line the student teaches itself, on the explicit line it has cross-entropy alone.
    """
    source: TargetSource | None = None
    if isinstance(teacher, TeacherSet):
        source = MixtureOfTeachers(recipe, model, teacher)  # type: ignore[assignment]
    elif teacher is not None:
        source = SeparateTeacher(teacher)
    if recipe.explicit.enabled:
        return _text_objective(recipe, model, source)
    if isinstance(source, SeparateTeacher):
        raise ConfigError("latents learn from their own weights or from a mixture", "set mixture.teachers=[NAME]")
    rkv, family = recipe.rkv, model.family
    if rkv.rotary == "before" and not family.rotary:
        raise ConfigError(f"rkv.rotary is before, but {family.name} has no rotary embedding", "leave rkv.rotary out")
    if rkv.rotary == "before" and not rotated_alike(model.config):
        raise ConfigError(
            f"rkv.rotary is before, but the layers of {family.name} rotate keys differently", "leave rkv.rotary out"
        )
    compressor = compressor_of(rkv, shuffle=rkv.shuffle)
    packed, seed = recipe.training.packed, recipe.system.seed
    decoder = step_decoder(recipe) if recipe.loss.step_decoder > 0 else None
    return latent_objective(model, recipe.loss, compressor, packed, rkv.rotary, seed, source, decoder)


def latent_objective(
    model: LatentModel,
    loss: LossConfig,
    compressor: Compressor,
    packed: bool = True,
    rotary: str = "after",
    seed: int = 0,
    source: TargetSource | None = None,
    decoder: Backbone | None = None,
) -> Objective:
    """Latent slots; with source None they learn from what the same weights compute for the chain of thought. `decoder`: writes
    the steps from them (loss.step_decoder)."""
    slots = StagedSlots if model.latent.stage_share > 0 else LatentSlots
    view = slots(model, loss, packed, rotary, own_teacher=source is None)
    source = OwnTeacher(model, rotary) if source is None else source
    shape = model.kv_shape
    compare = BySlot(compressor, shape, model.latent.num_tokens) if view.outputs.kv else None
    terms: dict[str, AuxTerm] = {"codi": CodiTerm(loss, shape, shape)} if view.outputs.codi else {}
    if decoder is not None:
        terms[STEP_DECODER] = StepDecoderTerm(loss.step_decoder, decoder, model.latent.num_tokens)
    wanted = source if compare is not None or terms else None
    scale = _kv_scale(loss, compare)
    objective = Objective(view, loss, wanted, compare, make_distance(loss), terms, seed=seed, kv_scale=scale)
    if not view.outputs.student:  # torch's own word: DDP would wait for a gradient that never comes
        names = [name for name, _ in objective.named_parameters() if name.startswith("model.project.")]
        objective._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
    return objective


def _text_objective(recipe: Recipe, model: LatentModel, source: TargetSource | None) -> Objective:
    explicit, shape = recipe.explicit, model.kv_shape
    if source is None:
        return Objective(TextColumns(model), recipe.loss, explicit=explicit, seed=recipe.system.seed)
    mixture = isinstance(source, MixtureOfTeachers)
    compare = _column_comparison(recipe, model, source) if recipe.loss.alpha2_kv > 0 else None
    distance = OfCodes(recipe.mixture.z_loss) if isinstance(compare, Codes) else make_distance(recipe.loss)
    terms = make_aux_terms(recipe, shape, source.shape, model.scale, model.cap, mixture)
    view, warmup = TextColumns(model, cue=recipe.loss.alpha1_codi > 0), recipe.mixture.layer_warmup if mixture else 0.0
    scale, seed = _kv_scale(recipe.loss, compare), recipe.system.seed
    return Objective(view, recipe.loss, source, compare, distance, terms, explicit, warmup, seed, scale)


def _kv_scale(loss: LossConfig, compare: Comparison | None) -> DimScale | None:
    """The scale of each dimension, where a recipe asks for it; trained codes have scales of their own."""
    wanted = loss.scale_of_kv == "dim" and compare is not None and not isinstance(compare, Codes)
    return DimScale(compare) if wanted else None  # type: ignore[arg-type]


def _column_comparison(recipe: Recipe, model: LatentModel, source: TargetSource) -> Comparison:
    explicit, shape, rkv = recipe.explicit, model.kv_shape, recipe.rkv
    compressor = compressor_of(rkv)
    pairing = Pairing(compressor, None if rkv.method == "full" else explicit.target_len, rkv.shuffle)
    if recipe.mixture.space == "z" and isinstance(source, MixtureOfTeachers):
        compare: Comparison = Codes(recipe, shape, source.mixture, pairing)
    else:
        form = PerLayer if explicit.form == "per_layer" else Aggregated
        compare = form(recipe, shape, source.shape, pairing)
    if isinstance(source, MixtureOfTeachers):
        every = range(shape.num_layers)
        layers = list(compare.layers) or [*(every if explicit.use_all_layers else every[-1:])]
        more = cka_layers(explicit.cka_layers, shape.num_layers) if explicit.cka_weight > 0 else []
        source.mixture.restrict(compare.kinds, layers, more)
    return compare
