"""Import and export of parameters: other frameworks, ONNX models, and safetensors files.

# Exporting programs

A trained network `rnn` with its `params` can also be exported as programs that need only JAX to
run (and flatbuffers, from the extra `interop`): neither this library nor your own code. Below,
``stream`` processes one step and ``whole`` a batch of ragged sequences. The parameters are
embedded; batch size and number of steps are free (at least 1):

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

To run them, given `folder` and `xs` [T, B, D]:

    from jax import export

    start, stream, whole = (
        export.deserialize((folder / f"{name}.jaxexport").read_bytes()).call
        for name in ("start", "stream", "whole")
    )
    state = start(xs[0])
    for x in xs:
        state, y = stream(state, x)

States are passed as they are here, pytrees of tuples and arrays. A state of another class, such as
that of `jaxrnn.dropout` shared over time, must first be registered with
``export.register_namedtuple_serialization``. `jaxrnn.chunked` needs a fixed number of steps: export
the layer inside it, which has the same parameters. A program exported for several platforms is
computed in the form that is fast on the platform it was traced on; its results are the same
everywhere. Programs can be run by later versions of JAX for at least six months (documentation of
``jax.export``).
"""

__all__ = ["flax", "haiku", "keras", "onnx", "safetensors", "torch"]
