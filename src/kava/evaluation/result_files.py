"""The two files of an evaluation: results_<set>[.<mode>][.ablate_<kind>][.<part>].yaml and predictions_<same>.jsonl."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.config.text import dump_yaml
from kava.config.typed_file import read_dict
from kava.errors import ConfigError
from kava.evaluation.eval_sets import EvalSet
from kava.evaluation.overrides import UNCHANGED, EvalOverrides
from kava.files import is_stream, write_text
from kava.outputs import Output, check_outputs, has_keys, rows_have
from kava.run_files import ResultFields

RESULTS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Files:
    """The paths of both files."""

    results: Path
    predictions: Path


def files_for(
    checkpoint: Path, items: EvalSet, mode: str, output: Path | None, overrides: EvalOverrides = UNCHANGED
) -> Files:
    """Paths of the results: `output` (a .yaml or .json file, or a folder), or beside a run's best_checkpoint.

    Another checkpoint's results go into its own folder, so that they are never taken for the best one's; the names of
    results on a part of a set, or with overrides, say so.
    """
    if output is not None and is_stream(output):
        return Files(output, Path(os.devnull))
    if output is not None and output.suffix and not os.path.isdir(output):
        if output.suffix not in RESULTS:
            raise ConfigError(f"--output {output} has an unknown ending", "name a .yaml or .json file, or a folder")
        return Files(output, output.with_name(f"predictions_{output.stem.removeprefix('results_')}.jsonl"))
    ablated = "" if overrides.ablate is None else f".ablate_{overrides.ablate}"
    name = items.name + ("" if mode == "latent" else f".{mode}") + ablated + items.part + overrides.part
    folder = output or results_folder(checkpoint)
    return Files(folder / f"results_{name}.yaml", folder / f"predictions_{name}.jsonl")


def results_folder(checkpoint: Path) -> Path:
    """The run's folder for its best_checkpoint, the checkpoint itself for any other."""
    if checkpoint.name == "best_checkpoint":
        return checkpoint.parent
    whole = checkpoint.resolve()  # "." or a link
    return whole.parent if whole.name == "best_checkpoint" else checkpoint


def check_writable(files: Sequence[Files], inputs: Sequence[Path] = (), overwrite: bool = True) -> None:
    """Raises before anything is generated where a file cannot be written, is an input, or two results would share
    it; without `overwrite` also where kava did not write what is there."""
    kinds = {"results": has_keys("dataset", "mode", "accuracy"), "predictions": rows_have("gold", "text")}
    outputs = [Output(kind, getattr(pair, kind), is_ours) for pair in files for kind, is_ours in kinds.items()]
    check_outputs(outputs, inputs, overwrite)


def up_to_date(files: Files, facts: Mapping[str, Any], with_losses: bool) -> bool:
    """Whether both files exist and the results have these fields (`facts`), and losses where they are wanted."""
    if not files.results.is_file() or not files.predictions.is_file():
        return False
    results = read_dict(files.results, ResultFields, "evaluate again without --missing")
    return all(results.get(name) == value for name, value in facts.items()) and (not with_losses or "losses" in results)


def write(files: Files, results: dict[str, Any], predictions: Sequence[dict[str, Any]]) -> None:
    """Writes both files, the results last: where they exist the predictions do."""
    write_text(files.predictions, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in predictions))
    as_json = files.results.suffix == ".json"
    write_text(files.results, json.dumps(results, indent=2) + "\n" if as_json else dump_yaml(results))


def line(results: dict[str, Any]) -> str:
    """The results of one set as a line of text."""
    spread = results["std_forward_passes"]
    spread_text = "" if spread is None else f" (sd {spread:.2f})"
    part = "" if results["total"] == results["set_size"] else f" [{results['total']} of {results['set_size']} items]"
    words = {"ablate": ", latents: ", "num_tokens": ", M = ", "num_iterations": ", T = "}
    changed = "".join(f"{word}{results[name]}" for name, word in words.items() if name in results)
    too_long = f"{count} too long for the model (not answered), " if (count := results.get("too_long")) else ""
    text = (
        f"{results['dataset']}{part}, {results['mode']}{changed}, cue {results['cue']}: "
        f"{100 * results['accuracy']:.1f} % correct ({results['correct']}/{results['total']}), "
        f"flexible {100 * results['flexible_accuracy']:.1f} %, no answer {100 * results['no_answer']:.1f} %, "
        f"cut off {100 * results['truncated']:.1f} %, {too_long}{results['avg_forward_passes']:.2f}{spread_text} forward passes, "
        f"{results['wall_time_s']:.1f} s"
    )
    several = ""
    if "pass_at_k" in results:
        count, passes = results["samples"], results["pass_at_k"]
        several = (
            f"{count} answers each at temperature {results['temperature']:g}: pass@1 {100 * passes[1]:.1f} %, "
            f"pass@{count} {100 * passes[count]:.1f} %, majority {results['maj_at_n']['correct']}/{results['total']}, "
            f"likeliest {results['best_at_n']['correct']}/{results['total']}"
        )
    losses = ", ".join(f"{name} {value:.4f}" for name, value in results.get("losses", {}).items())
    return "\n  ".join([text, *filter(None, [several, losses, results.get("note")])])
