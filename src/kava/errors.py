"""Errors that a user can fix: what is wrong, and what to do. The command line prints both and exits with 2."""


class KavaError(Exception):
    """`message` says what is wrong and where; `hint` says what to do."""

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(KavaError):
    """A recipe, a key, a value or a flag."""


class DataError(KavaError):
    """A dataset, a file of examples, a tokenizer without character offsets."""


class ModelError(KavaError):
    """An unsupported model family, a checkpoint of the wrong kind, weights that do not fit."""


class CodeRefused(ModelError):
    """Code that came with a model, which the caller did not allow to run."""


class CheckpointError(KavaError):
    """A run or student folder that is corrupt, missing or of another format."""


class RunError(KavaError):
    """A run that had to stop: non-finite loss, an occupied output folder, a full disk."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
