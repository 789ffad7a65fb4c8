"""Diagnostics of a network's dynamics: gradient flow, Lyapunov spectra, fixed points.

Every function is pure and works under ``jit`` and ``vmap``. A function that runs a network takes a
causal `Layer` and a single sequence, without batch axes; ``state=None`` means the initial state.

The floating-point leaves of a state are flattened into a vector of N entries, in the order of
``jax.flatten_util.ravel_pytree``. All other leaves (a step counter, a flag) are carried along but
not differentiated. Results have the dtype of the state, and at least float32. In the docstrings,
h_t is the state after t steps, and J_t = d h_t / d h_{t-1}.

Invalid arguments raise a TypeError or ValueError that names the argument. Parameters, states and
inputs that do not fit the layer are rejected by the layer itself.
"""

from jaxrnn.diagnostics.equilibria import FixedPoints, distinct_points, fixed_points
from jaxrnn.diagnostics.forgetting import memory_length, parallel_report, recommend_parallel
from jaxrnn.diagnostics.gradients import (
    gradient_norms_by_lag,
    jacobian_singular_values,
    saturated_fraction,
    state_jacobians,
)
from jaxrnn.diagnostics.lyapunov import lyapunov_spectrum, spectral_radius
from jaxrnn.recurrence.side_by_side import ParallelReport

__all__ = [
    "FixedPoints",
    "ParallelReport",
    "distinct_points",
    "fixed_points",
    "gradient_norms_by_lag",
    "jacobian_singular_values",
    "lyapunov_spectrum",
    "memory_length",
    "parallel_report",
    "recommend_parallel",
    "saturated_fraction",
    "spectral_radius",
    "state_jacobians",
]
