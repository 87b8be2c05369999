"""lm-evaluation-harness with the model `kava`: `python -m kava.harness --model kava --model_args pretrained=DIR --tasks ...`.

The harness finds models in its own package only, so they are registered here before its command line takes over.
"""

import importlib.util
import sys

from kava.errors import ConfigError, KavaError


def register() -> None:
    """Makes `kava` one of the harness's models."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("kava.harness needs lm_eval", "pip install 'kava[harness]'")
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry, register_model

    from kava.harness.model import HarnessStudent

    if "kava" in model_registry:
        return

    @register_model("kava")
    class HarnessModel(HarnessStudent, LM):
        """A student, as the harness knows models."""


def main() -> int:
    """The harness's own command line; a user's mistake is one message and exit code 2."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except KavaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
