"""A job as the text of a bash script: what `sbatch` and its like get, and what --dry_run prints."""

import re
import shlex
from collections.abc import Collection, Sequence

from kava.cluster.schedulers.base import Scheduler
from kava.cluster.spec import INDEX, Command, JobSpec

THEN = "--then"  # between the commands of a task
FIRST_PORT, PORTS = 20000, 20000


def script(spec: JobSpec, scheduler: Scheduler) -> str:
    """The whole script. Its shell becomes `kava task`, so that the scheduler's signals reach it."""
    lines = ["#!/bin/bash", *scheduler.directives(spec)]
    lines += ["", "set -euo pipefail"]
    lines += [f'cd "${{{scheduler.home}:-$PWD}}"'] if scheduler.home else []
    lines += [f'export PATH={shlex.quote(spec.path)}:"$PATH"'] if spec.path else []
    if spec.setup:
        lines += ["set +u  # environment scripts read variables that are not set", *spec.setup, "set -u"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in spec.environment]
    # variables with a default, which can be set when a script is submitted by hand
    lines += [f"{name}=${{{name}:-{shlex.quote(default)}}}" for name, default in spec.exported]
    if any(name == "CONFIG" for name, _ in spec.exported):  # a path to a recipe names its folder by the file
        lines += ["CONFIG_NAME=${CONFIG##*/}", "CONFIG_NAME=${CONFIG_NAME%.yaml}"]
    lines += _index(spec, scheduler)
    spread = any(command.spread for task in spec.tasks for command in task) and spec.resources.processes > 1
    if spread:  # how long torchrun waits for a checkpoint before it kills
        lines += [f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={spec.signal}"]
    if spread and spec.resources.nodes > 1:
        number = f"{scheduler.number} + {INDEX}" if spec.array is not None else scheduler.number
        lines += [*scheduler.head, f"port=$(({FIRST_PORT} + ({number}) % {PORTS}))"]
    if spec.portable:
        lines += [f"mkdir -p {quoted(spec.folder, spec.names)}"]
    return "\n".join([*lines, *_body(spec, scheduler)]) + "\n"


def _index(spec: JobSpec, scheduler: Scheduler) -> list[str]:
    """INDEX is the task's number from 0, checked, and the values that belong to it."""
    if spec.array is None:
        return []
    variable, last = scheduler.index, scheduler.first + spec.array - 1
    value = f"${{{variable}:-}}"
    below = f"10#${variable} < {scheduler.first} || " if scheduler.first else ""  # 10#: "08" is no octal number
    lines = [
        f'if ! [[ "{value}" =~ ^[0-9]{{1,9}}$ ]] || (({below}10#${variable} > {last})); then',
        f'    echo "error: array index {variable}={value} is not one of {scheduler.first} to {last}" >&2',
        "    exit 2",
        "fi",
        f"{INDEX}=$((10#${variable}{f' - {scheduler.first}' if scheduler.first else ''}))",
    ]
    for name, values in spec.lists:
        lines += [f"{name}_OF_TASK=({' '.join(shlex.quote(value) for value in values)})"]
        lines += [f"{name}=${{{name}_OF_TASK[INDEX]}}"]
    return lines


def _body(spec: JobSpec, scheduler: Scheduler) -> list[str]:
    if len(spec.tasks) == 1:
        return ["", *_task(spec, scheduler, spec.tasks[0])]
    lines = ["", f'case "${INDEX}" in']
    for number, commands in enumerate(spec.tasks):
        lines += [f"{number})", *(f"    {line}" for line in _task(spec, scheduler, commands)), "    ;;"]
    return [*lines, "esac"]


def _task(spec: JobSpec, scheduler: Scheduler, commands: Sequence[Command]) -> list[str]:
    """`exec kava task ... -- command --then command`, a line each."""
    status = spec.status_file(f"%{INDEX}%" if spec.array is not None else None)
    words = ["kava", "task", "--status", status, "--scheduler", scheduler.name]
    words += [word for file in spec.needs for word in ("--needs", file)]
    words += ["--requeue"] if spec.requeue else []
    words += ["--keep_going"] if spec.keep_going else []
    if spec.requeue and not scheduler.warns and spec.stop_after:
        words += ["--stop_after", str(spec.stop_after)]
    lines = ["exec " + line(words, spec.names) + " -- \\"]
    for place, command in enumerate(commands):
        then = f"{THEN} " if place else ""
        more = " \\" if place + 1 < len(commands) else ""
        lines.append(f"    {then}{_command(spec, scheduler, command)}{more}")
    return lines


def _command(spec: JobSpec, scheduler: Scheduler, command: Command) -> str:
    """The command, after what starts it on every GPU and node."""
    resources = spec.resources
    words = line(command.words, spec.names)
    container = f"{line(spec.container)} " if spec.container else ""
    if not command.spread or resources.processes == 1:
        return container + words
    each = f"--nproc_per_node={max(1, resources.gpus)}"
    if resources.nodes == 1:
        return f"{container}torchrun --standalone {each} -m {words}"
    everywhere = line(spec.launcher) if spec.launcher else scheduler.launch(spec)
    meet = f'--rdzv_backend=c10d --rdzv_id="${scheduler.job}" --rdzv_endpoint="$head:$port"'
    return f"{everywhere} {container}torchrun --nnodes={resources.nodes} {each} {meet} -m {words}"


def line(words: Sequence[str], names: Collection[str] = ()) -> str:
    """Words as one line of shell."""
    return " ".join(quoted(word, names) for word in words)


def quoted(word: str, names: Collection[str] = ()) -> str:
    """One word of shell: %NAME% of `names` becomes "$NAME", everything else stands for itself."""
    if not names:
        return shlex.quote(word)
    parts = re.split(f"%({'|'.join(names)})%", word)
    text = "".join(f'"${part}"' if place % 2 else shlex.quote(part) if part else "" for place, part in enumerate(parts))
    return text or "''"
