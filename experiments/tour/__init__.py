"""The tour: every sentence of a lecture on vanilla recurrent networks, measured.

The modules of `experiments.tour` state each claim and what would refute it:

1. The step is h_t = tanh(w h_{t-1} + u x_t (+ b)).
2. Unrolled, it is a feed-forward network with one layer per time step and shared weights.
3. The exponentially weighted moving average is this step with the identity as activation.
4. The weights do not depend on time: what is learned on short sequences holds on long ones.
5. Shallow and deep networks forecast a real series, yearly sunspot numbers.
6. vmap over many sequences gives what a loop over them gives, and faster.
7. The memory is short-term, because the gradient vanishes.

The verdicts are computed from the measurements. Claims 1, 2, 3 (the average itself), 4 and 6 (the
equality) must hold: if one is refuted, the exit code is 1. The others are reported either way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.shared.findings import Data, Finding, Result
from experiments.shared.options import RunConfig
from experiments.shared.output import Tick, within
from experiments.tour import averages, definition, mapping, retention, sunspots


@dataclass(frozen=True)
class Config(RunConfig):
    """The options of the tour."""

    definition: definition.Config = field(default_factory=definition.Config)
    """Claims 1 and 2."""
    averages: averages.Config = field(default_factory=averages.Config)
    """Claims 3 and 4."""
    sunspots: sunspots.Config = field(default_factory=sunspots.Config)
    """Claim 5."""
    mapping: mapping.Config = field(default_factory=mapping.Config)
    """Claim 6."""
    memory: retention.Config = field(default_factory=retention.Config)
    """Claim 7."""


def run(config: Config, progress: Tick) -> Result:
    """Measure every claim; the data have one entry per module of `experiments.tour`."""

    def part(start: float, stop: float, claims: str) -> Tick:
        return within(progress, start, stop, claims)

    seed = config.seed
    # Each claim has the part of the progress bar that matches its share of the time.
    data: Data = {
        "definition": definition.measure(config.definition, seed, part(0, 0.05, "claims 1 and 2")),
        "averages": averages.measure(config.averages, seed, part(0.05, 0.12, "claims 3 and 4")),
        "sunspots": sunspots.measure(config.sunspots, seed, part(0.12, 0.32, "claim 5")),
        "mapping": mapping.measure(config.mapping, seed, part(0.32, 0.36, "claim 6")),
        "memory": retention.measure(config.memory, seed, part(0.36, 1.0, "claim 7")),
    }
    return Result(data, _judge(data))


def _judge(data: Data) -> list[Finding]:
    return [
        *definition.judge(data["definition"]),
        *averages.judge(data["averages"]),
        *sunspots.judge(data["sunspots"]),
        *mapping.judge(data["mapping"]),
        *retention.judge(data["memory"]),
    ]
