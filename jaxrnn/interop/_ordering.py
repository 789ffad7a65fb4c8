"""The order of layers in a mapping whose key order is lost: JAX sorts the keys of dicts.

Layers whose names differ only in numbers form a family, ordered by these numbers. The order across
families follows from the layers' sizes; if that is ambiguous, the caller has to give it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxrnn.interop._networks import LayerParams, RecurrentParams, get_sizes


class FoundLayer(NamedTuple):
    """A layer found in a mapping; `may_pair`: it may be one direction of a bidirectional layer."""

    path: str
    part: LayerParams
    may_pair: bool = False


def sort_layers(found: Sequence[FoundLayer], expected: str) -> list[LayerParams]:
    """The layers in the only order that is consistent with their numbers and sizes.

    Two consecutive layers of a family that may pair and have the same input size can also be the
    two directions of one layer.

    Raises:
      ValueError: no order is consistent, or more than one; the message says what is `expected`.
    """
    families: dict[str, list[FoundLayer]] = {}
    for layer in sorted(found, key=lambda layer: _numbers(layer.path)):
        families.setdefault(_family(layer.path), []).append(layer)
    queues = list(families.values())

    @functools.cache
    def find_orders(used: tuple[int, ...], size: int | None) -> list[list[LayerParams]]:
        """Up to two orders of the layers not yet used, starting with one of `size` inputs."""
        if all(count == len(queue) for count, queue in zip(used, queues, strict=True)):
            return [[]]
        orders: list[list[LayerParams]] = []
        for index, queue in enumerate(queues):
            for count in (1, 2):
                part = _merge(queue[used[index] : used[index] + count], count)
                if part is None or size not in (None, get_sizes(part)[0]):
                    continue
                after = (*used[:index], used[index] + count, *used[index + 1 :])
                orders += [[part, *rest] for rest in find_orders(after, get_sizes(part)[1])]
        return orders[:2]

    orders = find_orders((0,) * len(queues), None)
    if len(orders) != 1:
        sizes = {layer.path: get_sizes(layer.part) for layer in found}
        raise ValueError(
            f"{'more than one' if orders else 'no'} order of the layers fits, expected {expected}; "
            f"their inputs and outputs are {sizes}"
        )
    return orders[0]


def _merge(layers: list[FoundLayer], count: int) -> LayerParams | None:
    """One layer as it is, or two as the directions of one; None if that is impossible."""
    if len(layers) < count:
        return None
    if count == 1:
        return layers[0].part
    parts = [layer.part for layer in layers if layer.may_pair]
    if len(parts) < 2 or get_sizes(parts[0])[0] != get_sizes(parts[1])[0]:
        return None
    return RecurrentParams(
        tuple(one for p in parts if isinstance(p, RecurrentParams) for one in p.directions)
    )


def _family(path: str) -> str:
    """A path without its numbers; "rnn" and "rnn_1" are one family, as in haiku."""
    return "/".join(re.sub(r"[0-9]+$", "#", re.sub(r"_[0-9]+$", "", p)) for p in path.split("/"))


def _numbers(path: str) -> list[int]:
    """The number at the end of each component of a path; -1 if there is none."""
    found = (re.search(r"[0-9]+$", component) for component in path.split("/"))
    return [int(match[0]) if match else -1 for match in found]
