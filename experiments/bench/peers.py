"""The contenders from elsewhere: flax, haiku, Keras, torch and onnxruntime, each given its due.

Every framework is imported only when it is asked for, and gets the problem's own weights. What each
needed to compute the same:

- flax: `nnx.RNN` over `nnx.SimpleCell`, time-major. The initial state is given, for it would draw a
  key to make one.
- haiku: `dynamic_unroll` of `VanillaRNN`, whose call is written anew, because relu is fixed in it;
  one bias.
- Keras: `SimpleRNN` on JAX, batch-major inputs that are prepared beforehand.
- torch: `nn.RNN`, whose second bias is zero and frozen, so that its gradient is not computed; Adam
  in one kernel (fused); one thread or one a core, whichever is faster. Ragged batches are sorted by
  length beforehand and packed while timed; the loss is that of the packed outputs. Not compiled:
  `torch.compile` leaves its loop over time as it is.
- onnxruntime: one `RNN` node a layer; the forward pass alone, for it computes no gradients here.

The first three run over the padding of ragged batches (`run_over_padding`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.cases import ADAM_EPS, LEARNING_RATE, Pass, Problem
from experiments.bench.contenders import as_numpy, enter, run_over_padding
from experiments.bench.timing import Entrant, Unavailable, time_once
from jaxrnn import Array, RNNParams
from jaxrnn.host import count_cores


def load(name: str) -> Any:
    """Import a framework.

    Raises:
      Unavailable: it is not installed, or its import fails.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == name.split(".", maxsplit=1)[0]:
            raise Unavailable("not installed") from None
        raise Unavailable(f"cannot be imported: {error}") from error
    except Exception as error:  # a peer that does not fit this JAX fails in its own way
        raise Unavailable(f"cannot be imported: {type(error).__name__}: {error}") from error


def build_flax(problem: Problem, what: Pass) -> Entrant:
    """``nnx.RNN`` over ``nnx.SimpleCell``."""
    nnx = load("flax.nnx")
    _, batch, _, units = problem.case.shape
    layers = []
    for p in problem.params:
        cell = nnx.SimpleCell(p.w_ih.shape[1], p.w_ih.shape[0], rngs=nnx.Rngs(0))
        cell.dense_i.kernel[...] = jnp.array(p.w_ih.T)
        cell.dense_i.bias[...] = jnp.array(p.b)
        cell.dense_h.kernel[...] = jnp.array(p.w_hh.T)
        layers.append(nnx.RNN(cell, time_major=True))
    graph, weights, rest = nnx.split(nnx.Sequential(*layers), nnx.Param, ...)

    def outputs(weights: Any, xs: Array) -> Array:
        for layer in nnx.merge(graph, weights, rest).layers:
            xs = layer(xs, initial_carry=jnp.zeros((batch, units)))
        return xs

    def to_params(weights: Any) -> tuple[RNNParams, ...]:
        cells = [layer.cell for layer in nnx.merge(graph, weights, rest).layers]
        return tuple(
            RNNParams(c.dense_i.kernel[...].T, c.dense_h.kernel[...].T, c.dense_i.bias[...], None)
            for c in cells
        )

    return enter(run_over_padding(outputs, weights, problem, to_params), what)


def build_haiku(problem: Problem, what: Pass) -> Entrant:
    """``dynamic_unroll`` of ``VanillaRNN`` with tanh."""
    hk: Any = load("haiku")
    base: Any = hk.VanillaRNN
    units = problem.case.shape[3]

    class TanhRNN(base):  # type: ignore[misc]
        def __call__(self, inputs: Array, prev_state: Array) -> tuple[Array, Array]:
            from_input = hk.Linear(units, name="input")
            from_state = hk.Linear(units, with_bias=False, name="state")
            out = jnp.tanh(from_input(inputs) + from_state(prev_state))
            return out, out

    def unroll(xs: Array) -> Array:
        for number in range(problem.case.layers):
            core = TanhRNN(units, double_bias=False, name=f"rnn{number}")
            xs, _ = hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))
        return xs

    network = hk.without_apply_rng(hk.transform(unroll))
    weights = {}
    for number, p in enumerate(problem.params):
        weights[f"rnn{number}/input"] = {"w": jnp.array(p.w_ih.T), "b": jnp.array(p.b)}
        weights[f"rnn{number}/state"] = {"w": jnp.array(p.w_hh.T)}

    def to_params(weights: Any) -> tuple[RNNParams, ...]:
        parts = [
            (weights[f"rnn{n}/input"], weights[f"rnn{n}/state"]) for n in range(problem.case.layers)
        ]
        return tuple(RNNParams(i["w"].T, s["w"].T, i["b"], None) for i, s in parts)

    return enter(run_over_padding(network.apply, weights, problem, to_params), what)


def build_keras(problem: Problem, what: Pass) -> Entrant:
    """Keras' ``SimpleRNN`` on JAX, through ``stateless_call``."""
    os.environ["KERAS_BACKEND"] = "jax"
    keras = load("keras")
    if keras.backend.backend() != "jax":
        raise Unavailable(f"Keras runs on {keras.backend.backend()}")
    steps, batch, inputs, units = problem.case.shape
    layers = [
        keras.layers.SimpleRNN(units, return_sequences=True) for _ in range(problem.case.layers)
    ]
    model = keras.Sequential([keras.Input((steps, inputs), batch_size=batch), *layers])
    model.set_weights([w for p in problem.params for w in (p.w_ih.T, p.w_hh.T, p.b)])
    weights, rest = (
        [jnp.array(variable.value) for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    def outputs(weights: Any, xs: Array) -> Array:
        return model.stateless_call(weights, rest, xs)[0]

    def to_params(weights: Any) -> tuple[RNNParams, ...]:
        threes = zip(weights[0::3], weights[1::3], weights[2::3], strict=True)
        return tuple(RNNParams(w_ih.T, w_hh.T, b, None) for w_ih, w_hh, b in threes)

    network = run_over_padding(outputs, weights, problem, to_params, batch_major=True)
    return enter(network, what)


def build_torch(problem: Problem, what: Pass) -> Entrant:
    """``torch.nn.RNN`` on the kind of device that JAX uses."""
    torch = load("torch")
    if jax.default_backend() == "cpu":
        _choose_threads(torch, _TorchNet(torch, problem), what)
    net = _TorchNet(torch, problem)
    if what == "forward":
        return Entrant(net.forward, net.read_outputs)
    if what == "gradient":
        return Entrant(net.take_gradient, net.read_gradient)
    return Entrant(net.take_step, net.read_step)


def _choose_threads(torch: Any, trial: _TorchNet, what: Pass) -> None:
    """One thread or one a core, whichever is faster on this problem: the best of three runs."""
    call = trial.forward if what == "forward" else trial.take_gradient
    best = {}
    for threads in (1, count_cores()):
        torch.set_num_threads(threads)
        call()
        best[threads] = min(time_once(call) for _ in range(3))
    torch.set_num_threads(min(best, key=lambda threads: best[threads]))


class _TorchNet:
    """The network, its data and its optimizer; the methods are what is timed."""

    def __init__(self, torch: Any, problem: Problem) -> None:
        on_cpu = jax.default_backend() == "cpu"
        if not on_cpu and not torch.cuda.is_available():
            raise Unavailable(f"torch has no device like JAX's, {jax.devices()[0].device_kind}")
        self.torch, self.problem = torch, problem
        self.synchronize = (lambda: None) if on_cpu else torch.cuda.synchronize
        _, _, inputs, units = problem.case.shape
        layers = problem.case.layers
        device = "cpu" if on_cpu else "cuda"
        self.rnn = torch.nn.RNN(inputs, units, layers, nonlinearity="tanh").to(device)
        with torch.no_grad():
            for number, p in enumerate(problem.params):
                zero = np.zeros_like(p.b)
                for tensor, array in zip(
                    self._tensors(number), (p.w_ih, p.w_hh, p.b, zero), strict=True
                ):
                    tensor.copy_(torch.tensor(array))
                self._tensors(number)[3].requires_grad_(False)
        self.xs = torch.tensor(problem.xs, device=device)
        lengths = problem.lengths
        self.lengths = None if lengths is None else torch.tensor(lengths, dtype=torch.int64)
        trained = [tensor for tensor in self.rnn.parameters() if tensor.requires_grad]
        options = {"lr": LEARNING_RATE, "eps": ADAM_EPS}
        try:
            self.adam = torch.optim.Adam(trained, fused=True, **options)
        except RuntimeError:  # older versions have no fused kernel on CPUs
            self.adam = torch.optim.Adam(trained, foreach=True, **options)

    def _tensors(self, layer: int) -> list[Any]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [getattr(self.rnn, f"{name}_l{layer}") for name in names]

    def _run(self) -> Any:
        """Outputs: a tensor [T, B, H], or a packed sequence."""
        if self.lengths is None:
            return self.rnn(self.xs)[0]
        pack = self.torch.nn.utils.rnn.pack_padded_sequence
        return self.rnn(pack(self.xs, self.lengths))[0]

    def forward(self) -> Any:
        with self.torch.inference_mode():
            ys = self._run()
        self.synchronize()
        return ys

    def take_gradient(self) -> None:
        self.rnn.zero_grad(set_to_none=True)
        self._back_propagate()
        self.synchronize()

    def take_step(self) -> None:
        self.adam.zero_grad(set_to_none=True)
        self._back_propagate()
        self.adam.step()
        self.synchronize()

    def _back_propagate(self) -> None:
        ys = self._run()
        valid = ys if self.lengths is None else ys.data
        valid.square().mean().backward()

    def read_outputs(self) -> np.ndarray:
        ys = self.forward()
        if self.lengths is not None:
            ys = self.torch.nn.utils.rnn.pad_packed_sequence(ys, total_length=len(self.xs))[0]
        return np.array(ys.cpu())

    def read_gradient(self) -> tuple[RNNParams, ...]:
        self.take_gradient()
        return self._read(lambda tensor: tensor.grad)

    def read_step(self) -> tuple[RNNParams, ...]:
        self.take_step()
        return self._read(lambda tensor: tensor.detach())

    def _read(self, pick: Callable[[Any], Any]) -> tuple[RNNParams, ...]:
        params = []
        for number in range(self.problem.case.layers):
            w_ih, w_hh, b = (pick(tensor).cpu().numpy() for tensor in self._tensors(number)[:3])
            params.append(RNNParams(w_ih, w_hh, b, None))
        return as_numpy(tuple(params))


def build_onnxruntime(problem: Problem, what: Pass) -> Entrant:
    """onnxruntime's RNN on the CPU, with all cores."""
    if what != "forward":
        raise Unavailable("computes no gradients")
    if jax.default_backend() != "cpu":
        raise Unavailable("runs on the CPU, unlike JAX here")
    runtime = load("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    model = _write_onnx(load("onnx"), problem)
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {"xs": np.ascontiguousarray(problem.xs)}
    if problem.lengths is not None:
        feeds["lengths"] = problem.lengths

    def call() -> Any:
        return session.run(None, feeds)[0]

    return Entrant(call, call)


def _write_onnx(onnx: Any, problem: Problem) -> bytes:
    steps, batch, inputs, units = problem.case.shape
    helper, nodes, ys = onnx.helper, [], "xs"
    constants: dict[str, Any] = {"directions": np.array([1], np.int64)}
    lengths = "" if problem.lengths is None else "lengths"
    for number, p in enumerate(problem.params):
        w, r, b = f"w{number}", f"r{number}", f"b{number}"
        both = np.concatenate([p.b, np.zeros_like(p.b)])
        constants |= {w: p.w_ih[None], r: p.w_hh[None], b: both[None]}
        inner, outer = f"states{number}", f"ys{number}"
        nodes.append(helper.make_node("RNN", [ys, w, r, b, lengths], [inner], hidden_size=units))
        nodes.append(helper.make_node("Squeeze", [inner, "directions"], [outer]))
        ys = outer
    real, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    given = [helper.make_tensor_value_info("xs", real, [steps, batch, inputs])]
    if lengths:
        given.append(helper.make_tensor_value_info(lengths, whole, [batch]))
    graph = helper.make_graph(
        nodes,
        "rnn",
        given,
        [helper.make_tensor_value_info(ys, real, [steps, batch, units])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


BUILDERS: dict[str, Callable[[Problem, Pass], Entrant]] = {
    "flax": build_flax,
    "haiku": build_haiku,
    "Keras": build_keras,
    "torch": build_torch,
    "onnxruntime": build_onnxruntime,
}
