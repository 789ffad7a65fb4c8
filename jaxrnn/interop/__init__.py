"""Weights in and out: other frameworks' parameters, ONNX models, and files.

Programs
--------
A trained network `rnn` with its `params` can also leave as programs that need JAX alone to run (and
flatbuffers, which the extra `interop` installs), and neither this library nor Python code of yours.
One takes a step of a stream, the other whole ragged sequences; the parameters are inside, the batch
and the time are free (at least 1)::

    import jax
    import jax.numpy as jnp
    from jax import export


    def stream(state, x):  # x [B, D]; a causal network
        return rnn.step(params, state, x)


    def start(x):  # the state before the first step, for a batch as large as that of x
        return rnn.initial_state(params, x.shape[:-1])


    def whole(xs, lengths):  # xs [T, B, D], lengths [B]; returns (state, ys)
        steps = jnp.arange(xs.shape[0], dtype=lengths.dtype)
        return rnn.unroll(params, None, xs, mask=steps[:, None] < lengths[None])


    t, b = export.symbolic_shape("t, b")
    x = jax.ShapeDtypeStruct((b, rnn.input_size), jnp.float32)
    xs = jax.ShapeDtypeStruct((t, b, rnn.input_size), jnp.float32)
    lengths = jax.ShapeDtypeStruct((b,), jnp.int32)
    arguments = {
        "start": (start, x),
        "stream": (stream, jax.eval_shape(start, x), x),
        "whole": (whole, xs, lengths),
    }
    for name, (function, *shapes) in arguments.items():
        program = export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(*shapes)
        (folder / f"{name}.jaxexport").write_bytes(program.serialize())

and where they run, with `folder` and `xs` [T, B, D]::

    from jax import export

    start, stream, whole = (
        export.deserialize((folder / f"{name}.jaxexport").read_bytes()).call
        for name in ("start", "stream", "whole")
    )
    state = start(xs[0])
    for x in xs:
        state, y = stream(state, x)

A state goes in and out as it is here, a pytree of tuples and arrays; a state of another class, such
as that of `dropout` shared over time, is made known to ``jax.export`` with
``export.register_namedtuple_serialization`` first. `chunked` needs a number of steps: export the
layer inside it, whose parameters are the same. A program keeps running with later versions of JAX
for at least six months (``jax.export``'s documentation).
"""
