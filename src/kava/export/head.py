"""The latent head of an exported folder: what `generate.py` must know of the student beside the model itself."""

import copy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from kava.backbone.model import LatentModel
from kava.backbone.tokens import NAMES
from kava.config import Recipe
from kava.data.chat_prompt import DAY, FIXED_DAY
from kava.data.encode import Encoder
from kava.files import make_folder, usual_mode, write_json, write_text
from kava.infer.checks import own_mode
from kava.infer.student import Student

FOLDER = "custom_generate"  # where transformers looks for generate.py
SETTINGS, WEIGHTS = "latent_head.json", "latent_head.safetensors"
SOURCE = Path(__file__).parent / "generate.py"
ONE_QUESTION = "{{ raise_exception('one question of the user, and nothing else') }}"
# A plain prompt as a chat template: the question and a new line, after bos where the tokenizer writes it.
PLAIN_TEMPLATE = (
    "{%- if messages | length != 1 or messages[0].role != 'user' -%}" + ONE_QUESTION + "{%- endif -%}"
    "{{- BOS + messages[0].content + '\\n' -}}"
)


def head_settings(student: Student) -> dict[str, Any]:
    """Everything that `generate.py` reads from latent_head.json but the names of the weights."""
    model, recipe = student.model, student.recipe
    mode = own_mode(recipe)
    special = None if mode == "cot" else model.special
    return {
        "mode": mode,
        "method": model.latent.method,
        "num_latents": model.latent.num_tokens,
        "num_rounds": model.latent.num_iterations,
        "prompt": recipe.dataset.prompt,
        "special_tokens": [] if special is None else list(NAMES),
        "bot_id": special and special.bot,
        "latent_id": special and special.latent,
        "eot_id": special and special.eot,
        "cue_ids": student.lead(mode),
        "eos_id": student.tokenizer.eos_token_id,
        "projection": bool(projection_weights(model)),
        "input_scale": (model.family.input_scale == "sqrt" and "sqrt") or model.input_scale,
    }


def projection_weights(model: LatentModel) -> dict[str, Tensor]:
    """prj's weights under the names that `generate.py` gives them; {} for the identity."""
    start = len("layers.")
    return {name[start:]: weight.detach().cpu().contiguous() for name, weight in model.project.state_dict().items()}


def write_head(student: Student, folder: Path, weights: dict[str, list[str]]) -> None:
    """Writes into custom_generate/ the settings and the projection. `weights`: the model's names by file."""
    target = folder / FOLDER
    make_folder(target)
    if projection := projection_weights(student.model):
        save_file(projection, target / WEIGHTS)
        usual_mode(target / WEIGHTS)
    write_json(target / SETTINGS, head_settings(student) | {"weights": weights})


def write_source(folder: Path) -> None:
    """Writes custom_generate/generate.py. transformers 4.57 runs it wherever it loads the folder, so it comes last."""
    write_text(folder / FOLDER / SOURCE.name, SOURCE.read_text(encoding="utf-8"))


def prompt_tokenizer(tokenizer: Any, recipe: Recipe) -> Any:
    """A copy of the tokenizer whose chat template writes the very prompt of the student, for one question."""
    own = copy.deepcopy(tokenizer)
    if recipe.dataset.prompt == "chat":
        fixed = "{%- set date_string = '" + DAY + "' -%}{%- set add_generation_prompt = true -%}"
        own.chat_template = FIXED_DAY + fixed + tokenizer.get_chat_template()
    else:
        bos = "bos_token" if Encoder(tokenizer).bos else "''"
        own.chat_template = PLAIN_TEMPLATE.replace("BOS", bos)
    return own


def generation_settings(student: Student) -> dict[str, Any]:
    """The fields of generation_config.json: the student's own end, length and sampling, none of the base model's."""
    evaluation, tokenizer = student.recipe.evaluation, student.tokenizer
    sampling = {"temperature": evaluation.temperature, "top_p": evaluation.top_p, "top_k": 0}
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_new_tokens": evaluation.max_new_tokens,
        "do_sample": evaluation.temperature > 0,
        **(sampling if evaluation.temperature > 0 else {}),
    }
