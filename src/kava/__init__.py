"""KaVa: latent reasoning by distilling a teacher's compressed key/value cache (arXiv 2510.02312).

result = kava.train(kava.load_recipe("embedded", {"training.max_steps": 20}), "outputs/first")
print(kava.evaluate(result.best_checkpoint, "chains", limit=50)[0].accuracy)
print(kava.Student.from_pretrained(result.best_checkpoint).answer(["3+4*2-1?"])[0].text)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from kava.align.projector import KVDimensionProjector as KVDimensionProjector
    from kava.backbone.extractor import create_kv_extractor as create_kv_extractor
    from kava.config import load_recipe as load_recipe
    from kava.evaluation.run import evaluate as evaluate
    from kava.infer.student import Student as Student
    from kava.machine.adapter import create_environment_adapter as create_environment_adapter
    from kava.training.distill import distill as distill
    from kava.training.run import train as train

__version__ = "0.1.0"
_MODULE_OF = {  # imported at first use: torch and transformers take seconds
    "KVDimensionProjector": "kava.align.projector",
    "Student": "kava.infer.student",
    "create_environment_adapter": "kava.machine.adapter",
    "create_kv_extractor": "kava.backbone.extractor",
    "distill": "kava.training.distill",
    "evaluate": "kava.evaluation.run",
    "load_recipe": "kava.config",
    "train": "kava.training.run",
}
__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'kava' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
