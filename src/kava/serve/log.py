"""The server's log: one JSON object a line on stderr, without questions and answers unless they are wanted."""

import json
import logging
import sys
import time
from typing import Any

LOGGER = logging.getLogger("kava.serve")


class JsonLines(logging.Formatter):
    """`event` and the fields of a record; ASCII, so that nothing from outside can begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def log(event: str, **fields: Any) -> None:
    LOGGER.info(event, extra={"fields": fields})


def log_to_stderr() -> None:
    """Sends this log, and warnings of the HTTP library, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("kava.serve", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
