"""Text from a file, or from the sources of Python's standard library, as codes of characters."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.files import read_text
from experiments.shared.options import InputError

_LIBRARY_SIZE = 1_000_000
_MAX_ALPHABET = 1000
_OTHERS = "\N{REPLACEMENT CHARACTER}"
_PRIOR = 4.0  # weight of the shorter context, in characters


class Text(NamedTuple):
    """A text of N characters.

    codes: [N] int32, indices into `alphabet`, the sorted characters of the part to fit, followed by
    one that replaces all other characters if there are any.
    """

    name: str
    alphabet: str
    codes: np.ndarray


def read_library() -> str:
    """About a million characters: the modules of Python's standard library in alphabetic order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts: list[str] = []
    for path in sorted(folder.glob("*.py")):
        try:
            parts.append(read_text(path))
        except InputError:  # a module that is empty or not UTF-8
            continue
        if sum(map(len, parts)) >= _LIBRARY_SIZE:
            break
    return "".join(parts)[:_LIBRARY_SIZE]


def encode(name: str, text: str, fit_end: int) -> Text:
    """The text as codes; characters that do not occur in `text[:fit_end]` share one.

    Raises:
      InputError: the text has only one character, or too many different ones.
    """
    known = "".join(sorted(set(text[:fit_end])))
    if not 2 <= len(known) <= _MAX_ALPHABET:
        raise InputError(
            f"{name} has {len(known)} different characters in the part to fit, expected 2 to "
            f"{_MAX_ALPHABET}"
        )
    alphabet = known + (_OTHERS if set(text) - set(known) else "")
    return encode_with(name, text, alphabet)


def encode_with(name: str, text: str, alphabet: str) -> Text:
    """The text as codes of an alphabet that `encode` found.

    Raises:
      InputError: a character is not in the alphabet, which has none that replaces others.
    """
    places = {character: place for place, character in enumerate(alphabet)}
    others = places.get(_OTHERS)
    if others is None:
        for character in sorted(set(text) - set(alphabet)):
            raise InputError(f"{name} has {character!r}, which the networks' alphabet lacks")
    codes = np.fromiter((places.get(c, others) for c in text), np.int32, len(text))
    return Text(name, alphabet, codes)


def measure_counts(codes: np.ndarray, fit_end: int, start: int, size: int) -> dict[str, float]:
    """Nats per character from `start` on, of models that count characters in `codes[:fit_end]`.

    A character after its `order` predecessors has the probability (count + k p) / (total + k),
    where p is its probability in the next shorter context (uniform below the empty one) and k = 4
    (MacKay & Peto 1995).
    """
    nats = {}
    lower = np.full(len(codes), 1 / size)
    for order, name in enumerate(("unigram", "order 1", "order 2")):
        contexts = np.zeros(len(codes), np.int64)
        for lag in range(1, order + 1):
            contexts[lag:] = contexts[lag:] * size + codes[:-lag]
        contexts[:order] = -1  # too few predecessors: a context of its own
        _, contexts = np.unique(contexts, return_inverse=True)
        pairs = contexts.astype(np.int64) * size + codes
        _, pairs = np.unique(pairs, return_inverse=True)
        counts = np.bincount(pairs[:fit_end], minlength=pairs.max() + 1)[pairs]
        totals = np.bincount(contexts[:fit_end], minlength=contexts.max() + 1)[contexts]
        lower = (counts + _PRIOR * lower) / (totals + _PRIOR)
        nats[name] = float(-np.log(lower[start:]).mean())
    return nats
