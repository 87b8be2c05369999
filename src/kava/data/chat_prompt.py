"""The question in a tokenizer's chat template (dataset.prompt: chat), for models that were tuned on chats.

The special tokens of the template are control tokens; those that somebody types in the question are characters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kava.characters import special_names, token_ids
from kava.errors import DataError

PLACE = "\ue000question\ue001"  # private-use characters: no template has them
# A template that writes today's date gets this one (Llama 3's own default), else tomorrow's prompt would be another.
DAY = "26 Jul 2024"
FIXED_DAY = "{%- macro strftime_now(format) -%}" + DAY + "{%- endmacro -%}"


@dataclass(frozen=True)
class ChatPrompt:
    """The template around a question: ids up to the last special token before it, text, the question, text, ids."""

    head: list[int]
    before: str
    after: str
    tail: list[int]

    @property
    def size(self) -> int:
        """The most tokens that it adds to a question."""
        return len(self.head) + len(self.tail) + len((self.before + self.after).encode())

    def ids(self, tokenizer: Any, questions: Sequence[str]) -> list[list[int]]:
        """The ids of each question in the template, up to where the answer begins."""
        texts = [self.before + question + self.after for question in questions]
        return [[*self.head, *ids, *self.tail] for ids in token_ids(tokenizer, texts)]


def chat_prompt(tokenizer: Any) -> ChatPrompt:
    """The tokenizer's own chat template, read once."""
    from jinja2 import TemplateError  # comes with torch; only templates need it

    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"dataset.prompt is chat, but the tokenizer {name} has no chat template",
            "set dataset.prompt=plain, or take a model that was tuned on chats",
        )
    hint = "set dataset.prompt=plain, or mend the template"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": PLACE}],
            chat_template=FIXED_DAY + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=True,
            date_string=DAY,
        )
    except (TemplateError, ValueError) as error:  # a ValueError: several templates, none of them the default one
        raise DataError(f"the chat template of {name} cannot be used: {' '.join(str(error).split())}", hint) from error
    if text.count(PLACE) != 1:
        raise DataError(f"the chat template of {name} has the question {text.count(PLACE)} times in it, not once", hint)
    left, _, right = text.partition(PLACE)
    special = re.compile("|".join(map(re.escape, special_names(tokenizer))) or r"(?!)")
    start = max((match.end() for match in special.finditer(left)), default=0)
    match = special.search(right)
    end = len(right) if match is None else match.start()
    head, tail = (list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (left[:start], right[end:]))
    return ChatPrompt(head, left[start:], right[:end], tail)
