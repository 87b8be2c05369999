"""The datasets known by name: their names, their place on the hub, and how their rows are read."""

from collections.abc import Callable
from dataclasses import dataclass

from kava.data.rows import Parts, Row
from kava.data.sources import aug, gsm8k, gsm_hard, own, svamp


@dataclass(frozen=True)
class Source:
    """One dataset. `folders`: further names of its folder under ./datasets, besides its name and hub id."""

    name: str
    hub_id: str
    parse: Callable[[Row, str, str], Parts]
    config: str | None = None
    folders: tuple[str, ...] = ()
    cot_type: str | None = None  # its only type; None = both
    whole_is_test: bool = False  # published for evaluation: a copy without splits is the test set

    @property
    def names(self) -> tuple[str, ...]:
        """All accepted names, the hub id first."""
        last = self.hub_id.rpartition("/")[2]
        return tuple(dict.fromkeys(n for n in (self.hub_id, self.name, last, *self.folders) if n))


OWN = Source("own", "", own.parse)
SOURCES: tuple[Source, ...] = (
    Source("gsm8k-aug", "whynlp/gsm8k-aug", aug.parse, cot_type="equation"),
    Source("gsm8k-aug-nl", "whynlp/gsm8k-aug-nl", aug.parse, cot_type="natural_language"),
    Source("gsm8k", "openai/gsm8k", gsm8k.parse, config="main"),
    Source("gsm8k-hard", "reasoning-machines/gsm-hard", gsm_hard.parse, folders=("gsm_hard",), whole_is_test=True),
    Source("svamp", "ChilleD/SVAMP", svamp.parse, whole_is_test=True),
)


def known_source(name: str) -> Source | None:
    """The source called `name`, in any of its spellings, ignoring case."""
    lower = name.lower()
    return next((s for s in SOURCES if lower in (n.lower() for n in s.names)), None)
