"""What the measurements of `text` say about each claim, and the words of its samples."""

from __future__ import annotations

import re

import numpy as np

from experiments.shared.findings import Data, Finding, describe_seeds

_TARGET = 1.60  # nats per character
_ADAPTED = 0.97


def judge(data: Data) -> list[Finding]:
    """One finding per claim."""
    nats, counts, words = data["network"]["test"], data["counts"], data["words"]
    mean = float(np.mean(nats))
    simple = ", ".join(f"{name} {value / np.log(2):.3f}" for name, value in counts.items())
    return [
        Finding(
            "counts",
            f"The network predicts {data['text']['name']} better than counts of contexts.",
            "its nats per character on the last tenth are fewer than those of counts of "
            "two-character contexts",
            f"{describe_seeds(np.asarray(nats) / np.log(2))} bits; {simple}",
            mean < counts["order 2"],
        ),
        Finding(
            "target",
            f"It needs less than {_TARGET:.2f} nats per character.",
            "so on the last tenth (the target is meant for a million characters of English)",
            f"{describe_seeds(nats)} nats; on validation "
            f"{describe_seeds(data['network']['validation'])}",
            mean < _TARGET,
        ),
        *_judge_wide(data),
        *_judge_adapted(data),
        Finding(
            "words",
            "What it writes consists of words.",
            "80 % of its words of three letters or more occur in the training text",
            f"{words['known']} of {words['sampled']}",
            words["known"] >= 0.8 * words["sampled"] > 0,
        ),
    ]


def _judge_wide(data: Data) -> list[Finding]:
    if data["wide"] is None:
        return []
    deep, wide = data["network"]["test"], data["wide"]["test"]
    return [
        Finding(
            "deep",
            "Deep, it predicts better than one wide layer of as many weights.",
            "its nats per character are fewer",
            f"{describe_seeds(deep)} nats; one wide layer {describe_seeds(wide)}",
            float(np.mean(deep)) < float(np.mean(wide)),
        )
    ]


def _judge_adapted(data: Data) -> list[Finding]:
    if data["adapted"] is None:
        return []
    ratio = float(np.mean(data["adapted"]) / np.mean(data["network"]["test"]))
    return [
        Finding(
            "adapted",
            "Learning from what it has just predicted, it predicts better.",
            f"its nats per character are at least {1 - _ADAPTED:.0%} fewer",
            f"{describe_seeds(data['adapted'])} nats: {1 - ratio:.1%} fewer",
            ratio <= _ADAPTED,
        )
    ]


def show_sample(data: Data) -> str:
    """The first sample, as a text to print."""
    return f"A sample, from the prompt {data['prompt']!r}:\n\n{data['samples'][0]}"


def count_words(samples: list[str], text: str) -> Data:
    """How many words of three letters or more are sampled, and how many of them the text has."""
    known = set(_find_words(text))
    words = [word for sample in samples for word in _find_words(sample)]
    return {"sampled": len(words), "known": sum(word in known for word in words)}


def _find_words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{3,}", text.lower())
