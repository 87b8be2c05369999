"""The queue of one machine: waits for other drivers, then runs a script's tasks one after another, in the background.

python -m kava.cluster.driver SCRIPT LOG TASKS|- [ID ...]     prints its own id and goes on without its parent
python -m kava.cluster.driver --cancel ID
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from kava.cluster.schedulers.local import DRIVER, Local
from kava.files import open_append

POLL = 0.2
NOWHERE = subprocess.DEVNULL


def alive(job: str) -> bool:
    """Whether a driver with this process id is running."""
    local = Local()
    process = subprocess.run(
        local.states_commands([job])[0], capture_output=True, text=True, errors="replace", check=False
    )
    return (job, None) in local.parse_states([], process.stdout)


def start(words: Sequence[str]) -> int:
    """Start the driver in the background and print its id."""
    command = [*DRIVER, "--work", *words]
    process = subprocess.Popen(command, stdin=NOWHERE, stdout=NOWHERE, stderr=NOWHERE, start_new_session=True)
    print(process.pid)
    return 0


def work(script: str, log: str, tasks: str, *waits: str) -> int:
    """Run the tasks in order, whatever fails; returns the last exit code that is not 0."""
    while any(alive(job) for job in waits):
        time.sleep(POLL)
    job, worst = str(os.getpid()), 0
    for number in range(int(tasks)) if tasks != "-" else [None]:
        environment = {**os.environ, Local.job: job, Local.index: "" if number is None else str(number)}
        unique = f"{log}_{job}" + ("" if number is None else f"_{number}")
        code = Local.requeue_code
        while code == Local.requeue_code:
            with open_append(f"{unique}.out") as out, open_append(f"{unique}.err") as err:
                running = subprocess.Popen(["bash", script], stdin=NOWHERE, stdout=out, stderr=err, env=environment)
                code = running.wait()
        worst = code or worst
    return worst


def cancel(job: str) -> int:
    """Send TERM to the driver and its tasks; a training saves a checkpoint first."""
    if sys.platform == "win32" or not alive(job):
        print(f"no job {job} is under way", file=sys.stderr)
        return 1
    os.killpg(int(job), signal.SIGTERM)
    return 0


def main(words: Sequence[str]) -> int:
    if words[0] == "--cancel":
        return cancel(words[1])
    return work(*words[1:]) if words[0] == "--work" else start(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
