"""Interactive mode: a line is a question, a line with a slash is a command."""

import math
import signal
from collections.abc import Callable

from kava.console import visible
from kava.errors import DataError
from kava.infer.batch import cost
from kava.infer.checks import untrained
from kava.infer.line_editing import line_editing, typed
from kava.infer.student import Student, sampling_of
from kava.stop_signals import Stopped

HELP = """\
/latent on|off   think in latents, or write the steps
/temp x          0 = always the likeliest token, above 0 = draw
/help            this list
/quit            leave (so do Ctrl-D and Ctrl-C)"""


class Chat:
    """Answers one question at a time; earlier questions and answers are not part of the prompt."""

    def __init__(
        self, student: Student, mode: str, max_new_tokens: int | None = None, write: Callable[[str], object] = print
    ):
        self.student, self.mode, self.limit, self.write = student, mode, max_new_tokens, write
        self.temperature = student.recipe.evaluation.temperature

    def run(self, read: Callable[[str], str] = input) -> None:
        """Reads lines until /quit, the end of the input or Ctrl-C."""
        self.write(f"mode {self.mode}; /help lists the commands")
        try:
            with line_editing(self.write):
                while self.line(typed(read("kava> "))):
                    pass
        except (EOFError, KeyboardInterrupt) as end:
            if isinstance(end, Stopped) and end.number != signal.SIGINT:
                raise
            self.write("")

    def line(self, line: str) -> bool:
        """Runs a command or answers a question; False to leave."""
        name, _, value = line.partition(" ")
        if name == "/quit":
            return False
        if name == "/latent":
            self._set_latent(value.strip())
        elif name == "/temp":
            self._set_temperature(value.strip())
        elif name.startswith("/"):
            self.write(HELP if name == "/help" else f"unknown command {visible(name)}\n{HELP}")
        elif line:
            self._answer(line)
        return True

    def _answer(self, question: str) -> None:
        """The answer and its cost; a question that cannot be answered is told in a line, and the conversation goes on."""
        sampling = sampling_of(self.student.recipe, self.temperature)
        try:
            answer = self.student.answer([question], self.mode, 1, self.limit, sampling)[0]
        except DataError as error:
            self.write(visible(f"error: {error.message}" + (f" ({error.hint})" if error.hint else "")))
            return
        self.write(f"{visible(answer.text)}\n{cost(answer.forward_passes, answer.truncated)}")

    def _set_latent(self, value: str) -> None:
        if value not in ("on", "off"):
            self.write("usage: /latent on|off")
            return
        self.mode = "latent" if value == "on" else "cot"
        note = untrained(self.student.recipe, self.mode)
        self.write(f"mode {self.mode}" + (f" ({note})" if note else ""))

    def _set_temperature(self, value: str) -> None:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            self.write("usage: /temp x, a number from 0 on")
            return
        self.temperature = number
        self.write(f"temperature {number:g}")
