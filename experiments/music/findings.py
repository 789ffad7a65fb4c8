"""What the measurements of `music` say about each claim."""

from __future__ import annotations

import numpy as np

from experiments.shared.findings import Data, Finding, describe_seeds

_GAIN = 0.04  # of the claim
_JOINT_TARGET = 5.5  # nats per frame
_NOTES = 0.3


def judge(data: Data) -> list[Finding]:
    """One finding per claim."""
    test = data["test"]
    ours, plain = float(np.mean(test["network"])), float(np.mean(test["plain"]))
    return [
        Finding(
            "single",
            f"A carefully trained network predicts {data['name']} better than a plain one.",
            f"its mean test NLL is at least {_GAIN:.0%} lower",
            f"{describe_seeds(test['network'])} against {describe_seeds(test['plain'])} nats per "
            f"frame: {1 - ours / plain:.1%} lower",
            ours <= (1 - _GAIN) * plain,
        ),
        *_judge_ensemble(test, ours, plain),
        *_judge_joint(data),
        Finding(
            "simple",
            "It predicts better than models without a network.",
            "its mean test NLL is below those of each key's frequency and of its frequency given "
            "the same key in the frame before (Markov)",
            f"{test['marginal']:.3f} by frequencies, {test['Markov']:.3f} by Markov",
            ours < min(test["marginal"], test["Markov"]),
        ),
    ]


def _judge_ensemble(test: Data, ours: float, plain: float) -> list[Finding]:
    """One finding, or none where there is one network only."""
    if len(test["network"]) == 1:
        return []
    return [
        Finding(
            "ensemble",
            "The mean of the networks' probabilities predicts better than each network alone.",
            "its test NLL is below the networks' mean test NLL",
            f"{test['ensemble']:.3f} nats per frame, {1 - test['ensemble'] / plain:.1%} below "
            f"plain; ensemble of plain networks {test['plain ensemble']:.3f}",
            test["ensemble"] < ours,
        )
    ]


def _judge_joint(data: Data) -> list[Finding]:
    test, notes = data["test"], data["notes"]
    joint, apart = np.asarray(test["joint"]), float(np.mean(test["network"]))
    return [
        Finding(
            "joint",
            "A second network over the keys of a frame predicts chords.",
            f"its mean test NLL is below {_JOINT_TARGET} nats per frame, and a quarter below that "
            "of the network whose keys are independent",
            f"{describe_seeds(joint[:, 1])}, with the first frames {describe_seeds(joint[:, 0])}; "
            f"ensemble {test['joint ensemble'][1]:.3f} and {test['joint ensemble'][0]:.3f}",
            joint[:, 1].mean() < min(_JOINT_TARGET, 0.75 * apart),
        ),
        Finding(
            "notes",
            "What it writes has as many notes as the pieces.",
            f"the mean number of notes per sampled frame differs by at most {_NOTES}",
            f"{notes['sampled']:.2f} against {notes['pieces']:.2f}; drawn independently "
            f"{notes['independent']:.2f}",
            abs(notes["sampled"] - notes["pieces"]) <= _NOTES,
        ),
    ]
