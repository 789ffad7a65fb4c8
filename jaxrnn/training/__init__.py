"""Training as a pure function: a state, a step, and many steps in one compiled call.

`make_train_step` makes a step of a loss and an optimizer, `truncate_train_step` applies it to one
window of a long sequence after another, and `jaxrnn.sharding.shard_train_step` spreads it over
devices. `train_steps` takes many steps as a pure function, `fit` in a loop on the host.
"""

from jaxrnn.training.clipping import clip_by_global_norm
from jaxrnn.training.loop import MakeBatch, NonFiniteError, fit, train_steps
from jaxrnn.training.truncation import truncate_train_step
from jaxrnn.training.update import TrainState, TrainStep, init_train_state, make_train_step

__all__ = [
    "MakeBatch",
    "NonFiniteError",
    "TrainState",
    "TrainStep",
    "clip_by_global_norm",
    "fit",
    "init_train_state",
    "make_train_step",
    "train_steps",
    "truncate_train_step",
]
