"""The vanilla network in NumPy float64: a loop forward, and back-propagation by hand.

It imports nothing from jaxrnn. Inputs are time-major with one batch axis: xs [T, B, D].
"""

import numpy as np

ACTIVATIONS = {
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
    "relu": (lambda a: np.maximum(a, 0), lambda a: (a > 0).astype(a.dtype)),
    "identity": (lambda a: a, np.ones_like),
    "softsign": (lambda a: a / (1 + np.abs(a)), lambda a: 1 / (1 + np.abs(a)) ** 2),
    "sigmoid": (
        lambda a: 1 / (1 + np.exp(-a)),
        lambda a: np.exp(-a) / (1 + np.exp(-a)) ** 2,
    ),
    "softplus": (lambda a: np.logaddexp(a, 0), lambda a: np.exp(-np.logaddexp(-a, 0))),
}


def visits(num_steps, mask, resets, reverse, row):
    """For one sequence: the steps in the order they are taken, and whether each starts afresh.

    A segment begins at each marked step that is taken. Backward the state is replaced at the last
    taken step of a segment that another follows."""
    taken = [t for t in range(num_steps) if mask[t, row]]
    starts = [bool(resets[t, row]) for t in taken]
    if not reverse:
        return list(zip(taken, starts, strict=True))
    fresh = [*starts[1:], False][: len(taken)]
    return list(zip(taken, fresh, strict=True))[::-1]


def forward(p, h0, xs, mask, resets, reverse, activation):
    """p: dict of w_ih [H, D], w_hh [H, H], b [H], h0 [H] and, of leaky units, the leak a [] or [H]
    itself, not its logit -> (h_last, ys, tape)."""
    f, _ = ACTIVATIONS[activation]
    num_steps, batch, _ = xs.shape
    ys = np.zeros((num_steps, batch, len(p["b"])))
    h_last = np.array(h0, dtype=np.float64)
    tape = []
    for row in range(batch):
        h = h_last[row].copy()
        for t, fresh in visits(num_steps, mask, resets, reverse, row):
            before = p["h0"] if fresh else h
            a = p["w_hh"] @ before + p["w_ih"] @ xs[t, row] + p["b"]
            h = f(a) if "a" not in p else (1 - p["a"]) * before + p["a"] * f(a)
            ys[t, row] = h
            tape.append((row, t, fresh, before, a))
        h_last[row] = h
    return h_last, ys, tape


def backward(p, xs, tape, activation, g_last, g_ys, slope_error=0.0):
    """Back-propagation through time along the tape -> gradients (p, h0, xs), each slope of the
    activation made larger by `slope_error`."""
    f, slope = ACTIVATIONS[activation]
    gp = {name: np.zeros_like(value) for name, value in p.items()}
    gx = np.zeros_like(xs)
    g_state = np.array(g_last, dtype=np.float64)
    for row, t, fresh, before, a in reversed(tape):
        g = g_state[row] + g_ys[t, row]
        ga = (slope(a) + slope_error) * g
        if "a" in p:
            ga = p["a"] * ga
            g_leak = g * (f(a) - before)
            gp["a"] += g_leak if np.ndim(p["a"]) else g_leak.sum()
        gp["w_hh"] += np.outer(ga, before)
        gp["w_ih"] += np.outer(ga, xs[t, row])
        gp["b"] += ga
        gx[t, row] = p["w_ih"].T @ ga
        g_before = p["w_hh"].T @ ga
        if "a" in p:
            g_before += (1 - p["a"]) * g
        if fresh:
            gp["h0"] += g_before
            g_before = np.zeros_like(g_before)
        g_state[row] = g_before
    return gp, g_state, gx


def network(layers, xs, mask, resets, g_ys, activation):
    """A deep network. Each layer is a list of one (forward) or two (and backward) parameter dicts;
    every state starts from the learned h0. Returns (ys, gradients like `layers`, gradient of xs)
    for the cotangent `g_ys` of the outputs."""
    batch = xs.shape[1]
    trace, below = [], xs
    for directions in layers:
        outs = []
        for direction, p in enumerate(directions):
            h0 = np.tile(p["h0"], (batch, 1))
            outs.append(forward(p, h0, below, mask, resets, direction == 1, activation))
        trace.append((below, [tape for _, _, tape in outs]))
        below = np.concatenate([ys for _, ys, _ in outs], axis=-1)
    ys, grads = below, []
    for directions, (inputs, tapes) in zip(layers[::-1], trace[::-1], strict=True):
        cuts = np.split(g_ys, len(directions), axis=-1)
        g_ys, layer_grads = np.zeros_like(inputs), []
        for p, tape, cut in zip(directions, tapes, cuts, strict=True):
            g_last = np.zeros((batch, len(p["b"])))
            gp, g_h0, gx = backward(p, inputs, tape, activation, g_last, cut)
            gp["h0"] += g_h0.sum(0)
            layer_grads.append(gp)
            g_ys = g_ys + gx
        grads.insert(0, layer_grads)
    return ys, grads, g_ys
