"""kava bench: time this machine, after a check that all ways give the same numbers."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kava.cli.bench_result import check_idle, prepare, show_or_fail
from kava.cli.common import Overwrite
from kava.cli.list_flags import ListFlagCommand
from kava.cli.student import Base, Checkpoint, TrustRemoteCode
from kava.lab.bench.text import answer_text, decode_text, extract_text, latent_text, train_text
from kava.progress import loading_libraries, say

SIZES = ("layers", "width", "heads", "kv_heads", "vocabulary", "question", "latents", "rounds")  # of a random model
Lengths = Literal["uniform", "gsm8k", "gsm8k-nl"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
OutputFile = Annotated[Path | None, typer.Option(help="also write the result as JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")]
Threads = Annotated[int, typer.Option(min=0, help="torch threads; 0 = torch's default")]
Warmup = Annotated[int, typer.Option(min=0, help="rounds before the clock counts")]
Repeats = Annotated[int, typer.Option(min=1, help="rounds; each times every way once")]
Layers = Annotated[int, typer.Option(min=1, max=1000, help="layers of the random Llama")]
Width = Annotated[int, typer.Option(min=8, max=65536, help="its width")]
Heads = Annotated[int, typer.Option(min=1, max=1024, help="query heads")]
KVHeads = Annotated[int, typer.Option(min=1, max=1024, help="key/value heads")]
Vocabulary = Annotated[int, typer.Option(min=16, max=2**20, help="tokens; 12000 = the head's share in Llama-3.2-1B")]
Latents = Annotated[int, typer.Option(min=1, help="M")]
Rounds = Annotated[int, typer.Option(min=1, help="T")]
Question = Annotated[int, typer.Option(min=1, help="tokens of a question")]
Cot = Annotated[int, typer.Option(min=1, help="tokens of a chain of thought")]


@app.callback(context_settings={"help_option_names": ["--help", "-h"]})
def bench() -> None:
    """Time this machine. Every comparison first checks that both sides give the same result."""


@app.command(cls=ListFlagCommand)
def decode(
    model: Annotated[str, typer.Option(help="hub name, local folder, or kava:embedded (the shipped checkpoint)")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest text per prompt; it may end earlier")] = 50,
    prompts: Annotated[list[str] | None, typer.Option(help='"p1" "p2" ...; default: four of different length')] = None,
    num_warmup: Warmup = 2,
    repeats: Repeats = 5,
    dtype: Annotated[Dtype, typer.Option(help="of the weights; half precision need not give equal text")] = "float32",
    device: Device = "auto",
    threads: Threads = 0,
    output: OutputFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Greedy decoding of a plain model: without a cache, with our cache, and the library's generate.

    The texts are compared token by token first; if they differ, nothing is timed and the exit code is 1.
    """
    prepare(threads, output, overwrite)
    with loading_libraries():
        from kava.lab.bench.decode import PROMPTS
        from kava.lab.bench.decode import bench as run

    result = run(model, prompts or PROMPTS, max_new_tokens, dtype, device, num_warmup, repeats, progress=not quiet)
    return show_or_fail(result, decode_text, "the texts differ", quiet, output)


@app.command(cls=ListFlagCommand)
def latent(
    checkpoint: Checkpoint,
    batch_sizes: Annotated[list[int] | None, typer.Option(min=1, help="beside 1: n1 n2 ...; default: 16")] = None,
    questions: Annotated[int, typer.Option(min=1, help="number of questions of the test set, always the same")] = 64,
    dataset: Annotated[str | None, typer.Option(help="default: the first of the recipe's evaluation.datasets")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer; default: the recipe's")] = None,
    num_warmup: Warmup = 1,
    repeats: Repeats = 3,
    dtype: Annotated[Dtype, typer.Option(help="of the weights; auto = as trained")] = "auto",
    device: Device = "auto",
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
    threads: Threads = 0,
    output: OutputFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Cost and accuracy of a student's latents, and of the chain of thought that the same weights write.

    Answers at every batch size are compared first; if they differ, nothing is timed and the exit code is 1.
    """
    from kava.infer.checks import stored_recipe, student_files

    recipe = stored_recipe(checkpoint)
    prepare(threads, output, overwrite, student_files(checkpoint))
    with loading_libraries():
        from kava.evaluation.eval_sets import load_eval_set
        from kava.lab.bench.latent import bench as run
        from kava.lab.bench.latent import open_student

    eval_set = load_eval_set(recipe, dataset or recipe.evaluation.datasets[0], questions)
    student = open_student(checkpoint, dtype, device, base, trust_remote_code)
    limit = max_new_tokens or recipe.evaluation.max_new_tokens
    result = run(student, eval_set, batch_sizes or (16,), limit, num_warmup, repeats, progress=not quiet)
    return show_or_fail({"checkpoint": str(checkpoint), **result}, latent_text, "the answers differ", quiet, output)


@app.command(cls=ListFlagCommand)
def answer(
    context: typer.Context,
    checkpoint: Annotated[
        Path | None, typer.Option(help="a student's folder; default: a random Llama of the sizes below")
    ] = None,
    layers: Layers = 6,
    width: Width = 512,
    heads: Heads = 8,
    kv_heads: KVHeads = 4,
    vocabulary: Vocabulary = 12000,
    question: Question = 64,
    latents: Latents = 24,
    rounds: Rounds = 3,
    new_tokens: Annotated[int, typer.Option(min=1, help="tokens of an answer")] = 16,
    further_tokens: Annotated[int, typer.Option(min=1, help="tokens over which one further token is timed")] = 48,
    batch_sizes: Annotated[list[int] | None, typer.Option(min=1, help="n1 n2 ...; default: 1 8 32")] = None,
    repeats: Repeats = 7,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
    threads: Threads = 0,
    device: Device = "cpu",
    output: OutputFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Answers, and one further token, beside the library's model with its own cache and `generate`.

    Tokens are compared first; if they differ, nothing is timed and the exit code is 1.
    """
    from kava.infer.checks import stored_recipe, student_files

    recipe = None if checkpoint is None else stored_recipe(checkpoint)
    check_idle(context, SIZES if checkpoint is not None else ("base", "trust_remote_code"), checkpoint)
    prepare(threads, output, overwrite, [] if checkpoint is None else student_files(checkpoint))
    with loading_libraries():
        from kava.evaluation.eval_sets import load_eval_set
        from kava.infer.student import Student
        from kava.lab.bench.answer import AnswerBenchSizes, random_subject, student_subject
        from kava.lab.bench.answer import bench as run

    batches = batch_sizes or [1, 8, 32]
    facts: dict[str, Any]
    if recipe is not None and checkpoint is not None:
        student = Student.from_pretrained(checkpoint, device, base, trust_remote_code)
        items = load_eval_set(recipe, recipe.evaluation.datasets[0], max(batches)).examples
        subject, facts = student_subject(student, [item.question for item in items]), {"model": str(checkpoint)}
    else:
        sizes = AnswerBenchSizes(layers, width, heads, kv_heads, vocabulary, question, 1, max(batches), latents, rounds)
        subject = random_subject(sizes, device)
        facts = {"model": f"random Llama, {layers} x {width}", "sizes": {name: getattr(sizes, name) for name in SIZES}}
    result = run(subject, batches, new_tokens, further_tokens, repeats, progress=not quiet)
    return show_or_fail(facts | result, answer_text, "the tokens differ", quiet, output)


@app.command()
def serve(
    checkpoint: Checkpoint,
    clients: Annotated[int, typer.Option(min=1, max=1000, help="connections that ask at the same time")] = 200,
    requests: Annotated[int, typer.Option(min=1, help="requests of a round, shared by the clients")] = 400,
    questions: Annotated[int, typer.Option(min=1, help="different ones, of the test set")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=1024, help="longest answer")] = 32,
    max_batch: Annotated[int, typer.Option(min=2, max=4096, help="answers made at once by the batching server")] = 64,
    repeats: Repeats = 1,
    output: OutputFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """A student's server under load, batching on against off: requests a second, p50 and p95 of the time of one.

    Every answer is compared with the library's; if one differs, no times are given and the exit code is 1.
    """
    from kava.cli.serve import check_packages
    from kava.infer.checks import stored_recipe, student_files

    check_packages()
    recipe = stored_recipe(checkpoint)
    prepare(0, output, overwrite, student_files(checkpoint))
    with loading_libraries():
        from kava.evaluation.eval_sets import load_eval_set
        from kava.infer.student import Student
        from kava.lab.bench.serve import bench as run
        from kava.lab.bench.serve import serve_text

    items = load_eval_set(recipe, recipe.evaluation.datasets[0], questions).examples
    student = Student.from_pretrained(checkpoint)
    texts = [item.question for item in items]
    result = run(checkpoint, student, texts, requests, clients, max_new_tokens, max_batch, repeats, progress=not quiet)
    return show_or_fail(result, serve_text, "the answers differ", quiet, output)


@app.command()
def train(
    layers: Layers = 6,
    width: Width = 512,
    heads: Heads = 8,
    kv_heads: KVHeads = 4,
    vocabulary: Vocabulary = 12000,
    lengths: Annotated[Lengths, typer.Option(help="of the rows: uniform, or those of GSM8K's train set")] = "uniform",
    question: Annotated[int | None, typer.Option(min=1, help="tokens of a question, uniform (64)")] = None,
    cot: Annotated[int | None, typer.Option(min=1, help="tokens of a chain of thought, uniform (60)")] = None,
    latents: Latents = 24,
    rounds: Rounds = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="samples per step")] = 8,
    repeats: Repeats = 7,
    threads: Threads = 0,
    device: Device = "cpu",
    output: OutputFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """One training step, forward and backward: packed, unpacked, and PCCoT's order of passes, side by side.

    With the lengths of real rows (equations or sentences) also a plain model on as many tokens without padding.
    """
    prepare(threads, output, overwrite)
    if lengths != "uniform" and (question or cot):
        from kava.errors import ConfigError

        flag = "--question" if question else "--cot"
        raise ConfigError(f"{flag} has no effect with --lengths {lengths}, whose rows have lengths of their own")
    with loading_libraries():
        from kava.lab.bench.train import TrainBenchSizes
        from kava.lab.bench.train import bench as run

    sizes = TrainBenchSizes(
        layers, width, heads, kv_heads, vocabulary, question or 64, cot or 60, batch_size, latents, rounds, lengths
    )
    result = run(sizes, repeats, device, progress=not quiet)
    return show_or_fail(result, train_text, "the losses differ", quiet, output)


@app.command()
def extract(
    layers: Layers = 6,
    width: Width = 512,
    heads: Heads = 8,
    kv_heads: KVHeads = 4,
    vocabulary: Vocabulary = 12000,
    question: Question = 64,
    cot: Cot = 60,
    batch_size: Annotated[int, typer.Option(min=1, help="examples per pass")] = 8,
    batches: Annotated[int, typer.Option(min=1, help="passes per round")] = 8,
    examples_per_shard: Annotated[int, typer.Option(min=1, help="examples in one file")] = 32,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="of the weights and of the store")
    ] = "float32",
    kv_method: Annotated[Literal["raw", "rkv", "crop", "uniform"], typer.Option(help="what is stored")] = "raw",
    target_len: Annotated[int, typer.Option(min=1, help="columns kept, unless raw")] = 8,
    repeats: Repeats = 7,
    folder: Annotated[Path | None, typer.Option(help="where to write; default: the system's temporary folder")] = None,
    threads: Threads = 0,
    device: Device = "cpu",
    output: OutputFile = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """A teacher's keys and values into a store, compared with a bare forward pass over the same batches.

    The store is first compared with the teacher, bit for bit; if they differ, nothing is timed and the exit code is 1.
    """
    prepare(threads, output, overwrite)
    with loading_libraries():
        from kava.lab.bench.extract import ExtractBenchSizes
        from kava.lab.bench.extract import bench as run

    sizes = ExtractBenchSizes(
        layers, width, heads, kv_heads, vocabulary, question, cot, batch_size, batches, examples_per_shard, dtype,
        kv_method, target_len,
    )  # fmt: skip
    result = run(sizes, repeats, device, folder, progress=not quiet)
    return show_or_fail(result, extract_text, "the numbers differ", quiet, output)


@app.command(cls=ListFlagCommand)
def gpu(
    device: Annotated[
        Literal["cuda", "cpu"],
        typer.Option(help="the first visible CUDA device; cpu tries the kit itself, with --tiny"),
    ] = "cuda",
    items: Annotated[list[str] | None, typer.Option(help="only these: name name ...; --list shows them")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="after which the rest is not run")] = 8.0,
    tiny: Annotated[bool, typer.Option("--tiny", help="toy sizes")] = False,
    in_process: Annotated[bool, typer.Option("--in_process", help="no watched process: for a debugger")] = False,
    output_dir: Annotated[Path, typer.Option(help="for result.json, table.txt, LOG-entry.md")] = Path("outputs/gpu"),
    show_list: Annotated[bool, typer.Option("--list", help="the items and their time limits, and stop")] = False,
    quiet: Quiet = False,
) -> int:
    """Everything that can only be seen on a GPU, in under eight minutes: right numbers first, then speed and memory.

    An item that fails, hangs or ends its process stops no other. Exit code 1 if one failed or was not run; an item that
    needs a package which is not installed is skipped by name.
    """
    from kava.cli.common import show_result
    from kava.lab.bench.gpu.items import ITEMS, select_items
    from kava.lab.bench.gpu.kit import run_kit
    from kava.lab.bench.gpu.report import kit_text

    names = select_items(items or [])
    if show_list:
        lines = [f"{name:<16} {ITEMS[name].seconds:>3.0f} s  {ITEMS[name].title}" for name in names]
        show_result(names, "\n".join(lines), quiet)
        return 0
    show = (lambda _: None) if quiet else say
    result = run_kit(names, device, tiny, minutes, output_dir, in_process, show)
    show_result(result, f"{kit_text(result)}\nresult, table and an entry for the log: {output_dir}", quiet)
    return 0 if all(item["state"] in ("ok", "skipped") for item in result["items"]) else 1
