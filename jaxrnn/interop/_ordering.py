"""The order of layers whose mapping has none: JAX sorts the keys of every tree that it maps.

Layers whose names differ in numbers alone go by their numbers. How such families follow one
another the layers' sizes must say, and where they allow more than one order, the caller.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxrnn.interop._networks import Part, Recurrent, sizes_of


class Found(NamedTuple):
    """A layer that was found: its path, itself, and whether it may be one direction of two."""

    path: str
    part: Part
    may_pair: bool = False


def in_order(found: Sequence[Found], expected: str) -> list[Part]:
    """The layers in the one order that their paths' numbers and their sizes allow.

    Two neighbours of a family that may pair, with equal inputs, can also be the two directions of
    one layer.

    Raises:
      ValueError: there is no such order, or more than one; the message says what is `expected`.
    """
    families: dict[str, list[Found]] = {}
    for layer in sorted(found, key=lambda layer: _numbers(layer.path)):
        families.setdefault(_family(layer.path), []).append(layer)
    lines = list(families.values())

    @functools.cache
    def orders(taken: tuple[int, ...], size: int | None) -> list[list[Part]]:
        """At most two orders of what is left, whose first layer has `size` inputs."""
        if all(count == len(line) for count, line in zip(taken, lines, strict=True)):
            return [[]]
        ways: list[list[Part]] = []
        for index, line in enumerate(lines):
            for count in (1, 2):
                part = _together(line[taken[index] : taken[index] + count], count)
                if part is None or size not in (None, sizes_of(part)[0]):
                    continue
                after = (*taken[:index], taken[index] + count, *taken[index + 1 :])
                ways += [[part, *rest] for rest in orders(after, sizes_of(part)[1])]
        return ways[:2]

    ways = orders((0,) * len(lines), None)
    if len(ways) != 1:
        sizes = {layer.path: sizes_of(layer.part) for layer in found}
        raise ValueError(
            f"{'more than one' if ways else 'no'} order of the layers fits, expected {expected}; "
            f"their inputs and outputs are {sizes}"
        )
    return ways[0]


def _together(layers: list[Found], count: int) -> Part | None:
    """One layer as it is, or two as the directions of one; None where there is no such layer."""
    if len(layers) < count:
        return None
    if count == 1:
        return layers[0].part
    parts = [layer.part for layer in layers if layer.may_pair]
    if len(parts) < 2 or sizes_of(parts[0])[0] != sizes_of(parts[1])[0]:
        return None
    return Recurrent(tuple(one for p in parts if isinstance(p, Recurrent) for one in p.directions))


def _family(path: str) -> str:
    """A path without its numbers; "rnn" and "rnn_1" are of one family, as haiku has it."""
    return "/".join(re.sub(r"[0-9]+$", "#", re.sub(r"_[0-9]+$", "", p)) for p in path.split("/"))


def _numbers(path: str) -> list[int]:
    """The number at the end of each component; -1 for none."""
    found = (re.search(r"[0-9]+$", component) for component in path.split("/"))
    return [int(match[0]) if match else -1 for match in found]
