"""Reservoir computing: a recurrent network that stays as it was drawn, and a linear readout.

Only the readout is fitted, by ridge regression, from statistics that one pass over a series of any
length gathers. One-step forecasts of a series [T, D], and then a free run of 500 steps:

    from jaxrnn import reservoir

    rnn = reservoir.echo_state_network(3, 300, radius=0.9, input_scale=0.5)
    params = rnn.init(jax.random.key(0))
    train, validation = (xs[:6000], xs[1:6001]), (xs[6000:8000], xs[6001:8001])
    state, fitted = reservoir.fit_readout(
        rnn, params, *train, penalties=[1e-8, 1e-6, 1e-4], validation=validation, washout=100
    )
    network = jaxrnn.stack(rnn, jaxrnn.dense(300, 3))
    params = (params, fitted.params)
    state, (_, forecast) = jaxrnn.generate(network, params, (state, ()), xs[8000], 500)

On a CPU the factorisations are LAPACK's, whose threads wait for each other very long where other
programs use the cores too: set the environment variable OPENBLAS_NUM_THREADS to 1 there, before the
process starts.

Everything is pure, and so a ``vmap`` over keys, radii, leaks and scales fits hundreds of reservoirs
at once; `search` draws them and keeps the best.

Source: Jaeger 2001, "The 'echo state' approach to analysing and training recurrent neural
networks"; Lukosevicius 2012, "A practical guide to applying echo state networks".
"""

from jaxrnn.reservoir.echo_state import echo_state_network
from jaxrnn.reservoir.random_search import Trials, search
from jaxrnn.reservoir.ridge import (
    Readout,
    Statistics,
    add_rows,
    fit_readout,
    gather_statistics,
    init_statistics,
    merge_statistics,
    ridge_readout,
)

__all__ = [
    "Readout",
    "Statistics",
    "Trials",
    "add_rows",
    "echo_state_network",
    "fit_readout",
    "gather_statistics",
    "init_statistics",
    "merge_statistics",
    "ridge_readout",
    "search",
]
