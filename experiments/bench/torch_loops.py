"""The whole loop of training in torch, as `whole_loops` times it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.bench.cases import Shape4
from experiments.bench.peers import choose_threads, load
from jaxrnn import Layer, Params
from jaxrnn.host import count_cores

DELAY = 2
"""The network says what it read so many steps ago."""
RATE = 1e-2
"""Adam's learning rate."""
Loop = Callable[[int], list[float]]
"""Trains for so many steps more; the loss of each."""


def torch_loop(shape: Shape4, network: Layer, params: Params, seed: int) -> Loop:
    """A loop over `nn.RNN` and a readout."""
    torch = load("torch")
    del network
    torch.manual_seed(seed)
    choose_threads(torch, functools.partial(_make_torch_loop(torch, shape, params), 3))
    return _make_torch_loop(torch, shape, params)


def torch_sweep(shape: Shape4, network: Layer, params: Params, networks: int, seed: int) -> Loop:
    """Such loops, one network after the other at each step."""
    torch = load("torch")
    del network
    torch.manual_seed(seed)
    choose_threads(torch, functools.partial(_make_torch_loop(torch, shape, params), 3))
    loops = [_make_torch_loop(torch, shape, params) for _ in range(networks)]

    def loop(steps: int) -> list[float]:
        return list(np.mean([each(steps) for each in loops], axis=0))

    return loop


def _make_torch_loop(torch: Any, shape: Shape4, params: Params) -> Loop:
    _, _, inputs, units = shape
    rnn, readout = params
    layer, last = torch.nn.RNN(inputs, units), torch.nn.Linear(units, inputs)
    with torch.no_grad():
        pairs = zip(
            (*layer.parameters(), *last.parameters()),
            (rnn.w_ih, rnn.w_hh, rnn.b, jnp.zeros(units), readout.w, readout.b),
            strict=True,
        )
        for tensor, array in pairs:
            tensor.copy_(torch.tensor(np.asarray(array)))
    layer.bias_hh_l0.requires_grad_(False)
    trained = [p for p in (*layer.parameters(), *last.parameters()) if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=RATE, fused=True)

    def loop(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            xs = torch.randn(*shape[:3])
            adam.zero_grad(set_to_none=True)
            ys = last(layer(xs)[0])
            loss = (ys[DELAY:] - xs[:-DELAY]).square().mean()
            loss.backward()
            adam.step()
            losses.append(loss.detach())
        return [loss.item() for loss in losses]

    return loop


def torch_mapped(shape: Shape4, network: Layer, params: Params, networks: int, seed: int) -> Loop:
    """A loop over all networks at once, by `torch.func.vmap`."""
    torch = load("torch")
    del network
    torch.manual_seed(seed)
    steps_of_time, batch, _, units = shape
    rnn, readout = params
    weights = [
        torch.tensor(np.stack([np.asarray(array)] * networks))
        for array in (rnn.w_ih, rnn.w_hh, rnn.b, readout.w, readout.b)
    ]
    adam = torch.optim.Adam(weights, lr=RATE, fused=True)

    def loss_of(weights: Any, xs: Any) -> Any:
        w_ih, w_hh, b, w, c = weights
        zs, h, hs = xs @ w_ih.T + b, torch.zeros(batch, units), []
        for t in range(steps_of_time):
            h = torch.tanh(zs[t] + h @ w_hh.T)
            hs.append(h)
        ys = torch.stack(hs) @ w.T + c
        return (ys[DELAY:] - xs[:-DELAY]).square().mean()

    solve = torch.func.vmap(torch.func.grad_and_value(loss_of))

    def loop(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            xs = torch.randn(networks, *shape[:3])
            gradients, values = solve(weights, xs)
            for tensor, gradient in zip(weights, gradients, strict=True):
                tensor.grad = gradient
            adam.step()
            losses.append(float(values.mean()))
        return losses

    torch.set_num_threads(count_cores())
    return loop
