"""The ten components of `kava smoke`: each uses the product's own verbs and functions once, and returns what it saw.

torch is imported inside the functions only: where it does not work, the components say so one by one.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

from kava.config import GeneratorConfig, LatentConfig, ModelConfig, list_recipes, load_recipe, save_recipe
from kava.data.collate import Collator
from kava.data.encode import QUESTION_END, Encoder
from kava.data.generator import BUILT_IN, Generator
from kava.data.tasks import TASKS
from kava.lab.selfcheck.context import SelfCheckContext, Skipped, by_name, closeness, expect
from kava.provenance import versions

LIBRARIES = ("kava", "python", "torch", "transformers", "peft")
TOY_SIZES = ("--layers=2", "--width=32", "--heads=4", "--kv_heads=2", "--vocabulary=64", "--question=7", "--cot=11",
             "--latents=4", "--rounds=2", "--batch_size=3")  # fmt: skip
QUIET_RUN = ("logging.report_to=[]", "training.learning_rate=1e-3")
DEBUG_RUN = ("--config", "debug", "--seed", "1", *QUIET_RUN, "lora.enabled=true", "lora.r=4", "lora.dropout=0.1")
FEW_EXAMPLES = (
    "dataset.generator.train_size=32", "dataset.generator.val_size=8", "training.batch_size=8",
    "training.warmup_ratio=0",
)  # fmt: skip
MODES = ("latent", "direct", "cot")
SMOKED = ("llama", "qwen2", "qwen3", "gpt2")  # `kava model check` compares every family, and more of it


def check_environment(context: SelfCheckContext) -> str:
    """`kava env`: versions of the packages, and the extractor on this machine."""
    report = context.run_verb("env", exit_codes=(0, 1))
    failed = [check for check in report["checks"] if check["status"] == "failed" and check["name"] != "Paths"]
    faults = [f"{check['name']}: {check['detail']}" for check in failed]  # the self-check has a folder of its own
    expect(not faults, "; ".join(faults))
    absent = [package["name"] for package in report["dependencies"] if package["version"] is None]
    installed = versions()
    text = ", ".join(f"{name} {installed[name]}" for name in LIBRARIES)
    return f"{text}; device {context.device}" + (f"; optional and absent: {', '.join(absent)}" if absent else "")


def check_recipes(context: SelfCheckContext) -> str:
    names = list_recipes()
    for name in names:
        recipe, path = load_recipe(name), context.folder / f"{name}.yaml"
        save_recipe(recipe, path)
        expect(load_recipe(path) == recipe, f"recipe {name} is not the same after it was written and read")
    return f"{len(names)} load, and are the same after writing and reading"


def check_data(_: SelfCheckContext) -> str:
    """Built-in problems generated, encoded and collated; the batch must decode to the texts it was made of."""
    tokenizer = _shipped_tokenizer()
    for name in BUILT_IN:
        generator = Generator(name, GeneratorConfig(train_size=40, val_size=10, test_size=10), 0)
        splits = [generator.split(split) for split in ("train", "validation", "test")]
        questions = [{example.question for example in split} for split in splits]
        expect(len(set.union(*questions)) == sum(map(len, questions)), f"{name}: splits share questions")
        encoder = Encoder(tokenizer, drop_last_step=False, cot_type=TASKS[name].cot_type)
        batch = Collator(tokenizer.pad_token_id)([encoder(example) for example in splits[2]])
        for row, mask, example in zip(batch["question"], batch["question_mask"], splits[2], strict=True):
            text = tokenizer.decode(row[mask])
            expect(text == example.question + QUESTION_END, f"{name}: {example.question!r} decodes to {text!r}")
    return f"{len(BUILT_IN)} built-in sets: splits disjoint, a padded batch decodes to its questions"


def check_packed(context: SelfCheckContext) -> str:
    """The losses of `kava bench train`, which times nothing where orders of passes differ."""
    words = ["bench", "train", *TOY_SIZES, "--repeats", 1, "--device", context.device]
    result = context.run_verb(*words, exit_codes=(0, 1))
    expect(result["equal"], "; ".join(result["differences"]))
    return f"{', '.join(result['terms'])}: the same {', '.join(result['terms']['packed'])} on a random model"


def check_training(context: SelfCheckContext) -> str:
    """A LoRA run with dropout; continued from its second update it must end with the same weights."""
    run = _debug_run(context)
    lines = log_lines(run / "log.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    expect(len(losses) == 4, f"{len(losses)} of 4 updates are in log.jsonl")
    expect(any("eval_accuracy" in line for line in lines), "nothing was validated")
    continued = context.folder / "continued"
    _train(context, continued, *DEBUG_RUN, "--resume", run / "checkpoint-step2")
    gap = weight_gap(run / "checkpoint-step4", continued / "checkpoint-step4")
    allowed = 0 if context.device == "cpu" else 1e-4  # accelerators add up in any order
    expect(gap <= allowed, f"continued from update 2, weights differ by {gap:.1e} from those of the whole run")
    fall = f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return f"4 updates: {fall}; continued from update 2: same weights, {closeness(gap)}"


def check_evaluate(context: SelfCheckContext) -> str:
    results = {mode: _evaluate(context, mode) for mode in MODES}
    for mode, result in results.items():
        expect(result["mode"] == mode, f"evaluated in mode {result['mode']}, not {mode}")
        again = context.run_verb("rescore", result["predictions"])[0]
        same = again["changed"] == 0 and again["accuracy"] == result["correct"] / result["total"]
        expect(same, f"{mode}: {result['correct']}/{result['total']} reported, rescored to {again['accuracy']}")
    correct = results["cot"]["correct"]
    expect(correct > 8, f"the shipped model's chain of thought solves {correct} of 16 problems only")
    parts = ", ".join(f"{mode} {result['correct']}/{result['total']}" for mode, result in results.items())
    return f"{parts} right; predictions rescored: the same counts"


def check_infer(context: SelfCheckContext) -> str:
    """`kava infer` in batches of 1 and 4, then greedy decoding of four families compared with the library's own."""
    from kava.lab.bench.decode import decode_all, differences, encode
    from kava.lab.bench.reference import random_model

    questions = ("3+4?", "2*3-1?", "3+4*2-1?", "4-1*3+2?", "1+1?")
    words = ["infer", "--checkpoint", _best(context), "--device", context.device, "--questions", *questions]
    for mode in ("--use_latent", "--no_latent"):
        single, batched = (context.run_verb(*words, mode, "--batch_size", size) for size in (1, 4))
        expect(single == batched, f"{mode}: answers at batch 1 and 4 differ")
    tokenizer, latent = _shipped_tokenizer(), LatentConfig()
    encoder = Encoder(tokenizer)
    for name in SMOKED:
        model = random_model(2, 32, 4, 2, len(tokenizer), latent, name, std=0.2).to(context.device).eval()
        ids = encode(encoder, questions, 12, model.max_positions)
        lines = differences(decode_all(model, encoder.eos, ids, 12), tokenizer)
        expect(not lines, f"{name}: " + "; ".join(lines))
    return (
        f"{len(questions)} questions, same answers at batch 1 and 4; {', '.join(SMOKED)} write what the library writes"
    )


def check_explicit(context: SelfCheckContext) -> str:
    """Two updates of the explicit line, its teacher live and from a store of its keys and values."""
    recipe = ["--config", "explicit_embedded", *FEW_EXAMPLES]
    store = context.folder / "teacher_kv"
    options = ["--output_dir", store, "--with_importance", "--batch_size", 8, context.device_setting]
    context.run_verb("extract", *recipe, *options)
    live, stored = context.folder / "explicit_live", context.folder / "explicit_stored"
    for folder, settings in ((live, []), (stored, [f"teacher.store={store}"])):
        _train(context, folder, *recipe, *QUIET_RUN, "training.max_steps=2", "logging.eval_steps=2", *settings)
    gap = weight_gap(live / "best_checkpoint", stored / "best_checkpoint")
    expect(gap <= 1e-4, f"a teacher read from its store trains other weights, off by {gap:.1e}")
    expect((live / "final_model" / "student" / "config.json").is_file(), "no final_model/student")
    return f"a teacher live and from its store: the same weights, {closeness(gap)}"


def check_mixture(context: SelfCheckContext) -> str:
    """Two updates with three teachers and a trained router (phase 4)."""
    weights = routing_weights(context, distill(context, "mixture", 4, steps=2))
    return f"weights {', '.join(f'{name} {weight:.2f}' for name, weight in weights.items())}; the student answers"


def check_report(context: SelfCheckContext) -> str:
    """`kava aggregate`, `kava format` and `kava report` on one evaluated run."""
    _evaluate(context, "latent")
    run, tables = _debug_run(context), context.folder / "tables"
    context.run_verb("aggregate", "--seed_dirs", run, "--output_json", tables / "aggregated_results.json")
    latex, csv = tables / "t.tex", tables / "t.csv"
    context.run_verb("format", "--input_dir", tables, "--output_latex", latex, "--output_csv", csv)
    expect("\\toprule" in latex.read_text(encoding="utf-8"), "the LaTeX table is empty")
    rows = csv.read_text(encoding="utf-8").splitlines()
    expect(len(rows) > 1, f"the CSV table is empty: {rows}")
    if importlib.util.find_spec("matplotlib") is None:
        raise Skipped("tables are made; matplotlib is not installed, so no page")
    page = context.folder / "report.html"
    context.run_verb("report", run, "--output", page)
    html = page.read_text(encoding="utf-8")
    expect("</html>" in html and ("<svg" in html or "<img" in html), "the page has no figures")
    return f"LaTeX and CSV tables of {len(rows) - 1} row, a page of {len(html) // 1024} KiB with figures"


def distill(context: SelfCheckContext, name: str, phase: int, *words: object, steps: int) -> Path:
    """The folder of a short run of `kava distill` on the built-in problems."""
    folder = context.folder / name
    options = ["--config", "multi_teacher_embedded", "--phase", phase, "--output_dir", folder, *words]
    options += ["--max_steps", steps, "--eval_steps", steps, "--logging_steps", 1]
    context.run_verb("distill", *options, *FEW_EXAMPLES, *QUIET_RUN, context.device_setting)
    return folder


def routing_weights(context: SelfCheckContext, run: Path) -> dict[str, float]:
    """The weights of a mixture's teachers in the last update, which must sum to 1; the student must answer two problems."""
    weights = log_lines(run / "routing.jsonl")[-1]["weights"]
    expect(abs(sum(weights.values()) - 1) < 1e-5, f"weights {weights} do not sum to 1")
    words = ["--checkpoint", run / "best_checkpoint", "--limit", 2, "--device", context.device]
    expect(context.run_verb("evaluate", *words)[0]["total"] == 2, "the student was not evaluated")
    return weights


def log_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def weight_gap(first: Path, second: Path) -> float:
    """The largest difference between two students' weights."""
    from safetensors.torch import load_file

    from kava.backbone.card import WEIGHTS

    left, right = (load_file(folder / WEIGHTS) for folder in (first, second))
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def _debug_run(context: SelfCheckContext) -> Path:
    """The folder of a finished run of four updates, trained when it is first needed."""
    folder = context.folder / "debug_seed_1"
    if not folder.exists():
        _train(context, folder, *DEBUG_RUN)
    return folder


def _train(context: SelfCheckContext, folder: Path, *words: object) -> None:
    context.run_verb("train", "--output_dir", folder, context.device_setting, *words)


def _best(context: SelfCheckContext) -> Path:
    return _debug_run(context) / "best_checkpoint"


def _evaluate(context: SelfCheckContext, mode: str) -> dict[str, Any]:
    words = ["--checkpoint", _best(context), "--mode", mode, "--device", context.device]
    return context.run_verb("evaluate", *words)[0]


def _shipped_tokenizer() -> Any:
    from kava.backbone.load import SHIPPED, load_tokenizer

    return load_tokenizer(SHIPPED["kava:embedded"], ModelConfig())


COMPONENTS = by_name(
    check_environment, check_recipes, check_data, check_packed, check_training, check_evaluate, check_infer, check_explicit,
    check_mixture, check_report,
)  # fmt: skip
