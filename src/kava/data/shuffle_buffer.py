"""A stream in random order without holding it: the next item is drawn from a buffer that the stream refills."""

import random
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def shuffled(items: Iterable[Item], size: int, seed: str) -> Iterator[Item]:
    """The items, each once, in an order that `seed` and `size` alone decide; a size of 0 or 1 keeps their order.

    An item can come any time later than its place, and up to `size` places sooner.
    """
    draw, buffer = random.Random(seed), list[Item]()
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
        elif size:
            place = draw.randrange(size)
            yield buffer[place]
            buffer[place] = item
        else:
            yield item
    draw.shuffle(buffer)
    yield from buffer
