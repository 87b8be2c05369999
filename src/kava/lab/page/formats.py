"""Numbers, lists and pieces of text as the page writes them. What is missing is a dash, never 0."""

from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

DASH = "\u2013"  # an en dash: no value
SEED_LINES = "Thin lines are seeds, thick ones their mean."
GREY_LINES = "Grey: the other panels' means."


def percent(share: float | None, digits: int = 1) -> str:
    return DASH if share is None else f"{100 * share:.{digits}f}"


def mean_sd(mean: float | None, sd: float | None) -> str:
    """Percent, and the sample standard deviation where it exists: 93.1 (0.4)."""
    return percent(mean) + ("" if sd is None else f" ({percent(sd)})")


def number(value: Any, digits: int = 4) -> str:
    """Significant digits, without exponents where they can be avoided; a dash for None."""
    if value is None:
        return DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def p_value(p: float | None) -> str:
    if p is None:
        return DASH
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def seconds(value: float | None) -> str:
    """A duration: 12.0 s, 3 min 18 s, 2 h 05 min."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def seed_name(seed: int | None) -> str:
    return DASH if seed is None else str(seed)


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 seed, 5 seeds."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[Any]) -> str:
    """Words as a list in a sentence: a, b and c."""
    parts = [str(word) for word in words]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def distinct(values: Iterable[Any]) -> list[str]:
    """Every different value once, as text; None is left out."""
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def plot_name(kind: str, label: str) -> str:
    """A figure's name with only the characters that files and ids allow."""
    return f"{kind}_" + "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in label)


def code(content: Any) -> Markup:
    return Markup("<code>{}</code>").format(content)


def styled(content: Any, style: str) -> Markup:
    """Text with a CSS class: good, warn, bad, sub."""
    return Markup('<span class="{}">{}</span>').format(style, content)


def join(parts: Iterable[Any], between: str = " ") -> Markup:
    return Markup(between).join(parts)
