"""Gradients forward in time, for streams without end: memory does not grow with their length.

A layer of this module is a vanilla layer whose state also carries how the units' states depend on
the parameters, the influence. So ``jax.grad`` of a loss of the present output, with respect to the
parameters, is the gradient through all of the past, without going back to it. Parameters are those
of `jaxrnn.vanilla_rnn`, and everything that takes a layer takes these: `jaxrnn.stack`, masks,
resets, `jaxrnn.constrained`. One gradient, now:

    from jaxrnn import online

    network = jaxrnn.stack(online.rtrl(2, 16), jaxrnn.dense(16, 1))

    def loss_fn(params, state, batch, key):
        x, target = batch
        state, y = network.step(params, state, x)
        return jnp.mean((y - target) ** 2), (state, {})

    params = network.init(jax.random.key(0))
    state = network.initial_state(params)
    (loss, (state, _)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        params, state, (xs[0], targets[0]), None
    )

`jaxrnn.make_train_step` with ``has_carry=True`` makes a training step of such a loss. With
`mean_over_time` the loss is that of k time steps, and `jaxrnn.truncate_train_step` updates after
every k of a batch [T, ...], in one scan. k may be 1; then ``optax.flatten``, which makes one vector
of all parameters, makes the steps of a small network shorter:

    optimizer = optax.flatten(optax.adam(1e-3))
    train_step = jaxrnn.truncate_train_step(
        jaxrnn.make_train_step(
            online.mean_over_time(loss_fn), optimizer, has_carry=True
        ),
        window=1,
    )
    train_state = jaxrnn.init_train_state(
        params, optimizer, jax.random.key(1), carry=state
    )
    train_state, metrics = jax.jit(train_step)(train_state, (xs, targets))

What is exact. While parameters do not change, `rtrl` gives the gradient of back-propagation through
the whole past, for its own parameters and for all that stands above it without a memory, such as a
readout. After an update the influence is still that of the parameters before it. In a stack of
several such layers, the gradients of a lower one miss what it does to the present output through
the memory of the layers above; what passes through them in the present step is exact. `exact` of a
whole stack misses nothing, and takes a step of the stack for each parameter. First derivatives
only: those of these gradients are not the second derivatives of a loss. Through the state that a
call is given no gradient flows.
"""

from jaxrnn.online.any_layer import exact
from jaxrnn.online.attached import feedback_alignment
from jaxrnn.online.losses import mean_over_time
from jaxrnn.online.units import OnlineState, rflo, rtrl, snap1

__all__ = [
    "OnlineState",
    "exact",
    "feedback_alignment",
    "mean_over_time",
    "rflo",
    "rtrl",
    "snap1",
]
