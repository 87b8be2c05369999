"""What suite.json holds: the members that an experiment planned, and what broke."""

from pydantic import Field

from kava.config.typed_file import Record


class SuiteEntry(Record):
    """One member."""

    title: str = ""
    settings: list[str] = Field([])
    mode: str = "latent"


class SuiteFile(Record):
    suite: str | None = None
    config: str | None = None
    seeds: list[int] = Field([])
    sets: list[str] = Field([])
    members: dict[str, SuiteEntry] = Field({})
    broken: dict[str, str] = Field({})
