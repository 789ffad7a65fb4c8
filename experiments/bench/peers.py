"""The other frameworks: flax, haiku, Keras, torch and onnxruntime, each at its best.

Each framework is imported only when it takes part, and gets the workload's own weights. What each
needed to compute the same:

- flax: `nnx.RNN` over `nnx.SimpleCell`, time-major. The initial state is passed in, because flax
  would draw a key to make one.
- haiku: `dynamic_unroll` of `VanillaRNN` with one bias; its call is overridden, because it always
  applies relu.
- Keras: `SimpleRNN` on JAX, with batch-major inputs prepared beforehand.
- torch: `nn.RNN`, whose second bias is zero and frozen, so that its gradient is not computed; fused
  Adam; one thread or one per core, whichever is faster. Ragged batches are sorted by length
  beforehand and packed while timed; the loss is that of the packed outputs. Not compiled, because
  `torch.compile` does not change its loop over time.
- onnxruntime: the model that `jaxrnn.interop.onnx.to_onnx` writes; the forward pass only, because
  it computes no gradients here.

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

from experiments.bench.cases import ADAM_EPS, LEARNING_RATE, Pass, Workload
from experiments.bench.contenders import Builder, as_numpy, enter, run_over_padding
from experiments.bench.entrants import Entrant, Unavailable
from experiments.shared.timing import Call, time_once
from jaxrnn import Array, RNNParams, stack, vanilla_rnn
from jaxrnn.host import count_cores
from jaxrnn.interop.onnx import to_onnx


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
    except Exception as error:  # a peer that does not support this JAX may raise anything
        raise Unavailable(f"cannot be imported: {type(error).__name__}: {error}") from error


def build_flax(workload: Workload, what: Pass) -> Entrant:
    """``nnx.RNN`` over ``nnx.SimpleCell``."""
    nnx = load("flax.nnx")
    _, batch, _, units = workload.case.shape
    layers = []
    for p in workload.params:
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

    return enter(run_over_padding(outputs, weights, workload, to_params), what)


def build_haiku(workload: Workload, what: Pass) -> Entrant:
    """``dynamic_unroll`` of ``VanillaRNN`` with tanh."""
    hk: Any = load("haiku")
    base: Any = hk.VanillaRNN
    units = workload.case.shape[3]

    class TanhRNN(base):  # type: ignore[misc]
        def __call__(self, inputs: Array, prev_state: Array) -> tuple[Array, Array]:
            from_input = hk.Linear(units, name="input")
            from_state = hk.Linear(units, with_bias=False, name="state")
            out = jnp.tanh(from_input(inputs) + from_state(prev_state))
            return out, out

    def unroll(xs: Array) -> Array:
        for number in range(workload.case.layers):
            core = TanhRNN(units, double_bias=False, name=f"rnn{number}")
            xs, _ = hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))
        return xs

    network = hk.without_apply_rng(hk.transform(unroll))
    weights = {}
    for number, p in enumerate(workload.params):
        weights[f"rnn{number}/input"] = {"w": jnp.array(p.w_ih.T), "b": jnp.array(p.b)}
        weights[f"rnn{number}/state"] = {"w": jnp.array(p.w_hh.T)}

    def to_params(weights: Any) -> tuple[RNNParams, ...]:
        parts = [
            (weights[f"rnn{n}/input"], weights[f"rnn{n}/state"])
            for n in range(workload.case.layers)
        ]
        return tuple(RNNParams(i["w"].T, s["w"].T, i["b"], None) for i, s in parts)

    return enter(run_over_padding(network.apply, weights, workload, to_params), what)


def build_keras(workload: Workload, what: Pass) -> Entrant:
    """Keras' ``SimpleRNN`` on JAX, through ``stateless_call``."""
    os.environ["KERAS_BACKEND"] = "jax"
    keras = load("keras")
    if keras.backend.backend() != "jax":
        raise Unavailable(f"Keras runs on {keras.backend.backend()}")
    steps, batch, inputs, units = workload.case.shape
    layers = [
        keras.layers.SimpleRNN(units, return_sequences=True) for _ in range(workload.case.layers)
    ]
    model = keras.Sequential([keras.Input((steps, inputs), batch_size=batch), *layers])
    model.set_weights([w for p in workload.params for w in (p.w_ih.T, p.w_hh.T, p.b)])
    weights, rest = (
        [jnp.array(variable.value) for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    def outputs(weights: Any, xs: Array) -> Array:
        return model.stateless_call(weights, rest, xs)[0]

    def to_params(weights: Any) -> tuple[RNNParams, ...]:
        threes = zip(weights[0::3], weights[1::3], weights[2::3], strict=True)
        return tuple(RNNParams(w_ih.T, w_hh.T, b, None) for w_ih, w_hh, b in threes)

    network = run_over_padding(outputs, weights, workload, to_params, batch_major=True)
    return enter(network, what)


def build_torch(workload: Workload, what: Pass) -> Entrant:
    """``torch.nn.RNN`` on the kind of device that JAX uses."""
    torch = load("torch")
    if jax.default_backend() == "cpu":
        trial = _TorchNet(torch, workload)
        choose_threads(torch, trial.forward if what == "forward" else trial.take_gradient)
    net = _TorchNet(torch, workload)
    if what == "forward":
        return Entrant(net.forward, net.read_outputs)
    if what == "gradient":
        return Entrant(net.take_gradient, net.read_gradient)
    return Entrant(net.take_step, net.read_step)


def choose_threads(torch: Any, call: Call) -> None:
    """One thread or one per core, whichever is faster for `call`: the best of three runs."""
    best = {}
    for threads in (1, count_cores()):
        torch.set_num_threads(threads)
        call()
        best[threads] = min(time_once(call) for _ in range(3))
    torch.set_num_threads(min(best, key=lambda threads: best[threads]))


class _TorchNet:
    """The network, its data and its optimizer; its public methods are what is timed."""

    def __init__(self, torch: Any, workload: Workload) -> None:
        on_cpu = jax.default_backend() == "cpu"
        if not on_cpu and not torch.cuda.is_available():
            raise Unavailable(f"torch has no device like JAX's, {jax.devices()[0].device_kind}")
        self.torch, self.workload = torch, workload
        self.synchronize = (lambda: None) if on_cpu else torch.cuda.synchronize
        _, _, inputs, units = workload.case.shape
        layers = workload.case.layers
        device = "cpu" if on_cpu else "cuda"
        self.rnn = torch.nn.RNN(inputs, units, layers, nonlinearity="tanh").to(device)
        with torch.no_grad():
            for number, p in enumerate(workload.params):
                zero = np.zeros_like(p.b)
                for tensor, array in zip(
                    self._tensors(number), (p.w_ih, p.w_hh, p.b, zero), strict=True
                ):
                    tensor.copy_(torch.tensor(array))
                self._tensors(number)[3].requires_grad_(False)
        self.xs = torch.tensor(workload.xs, device=device)
        lengths = workload.lengths
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
        for number in range(self.workload.case.layers):
            w_ih, w_hh, b = (pick(tensor).cpu().numpy() for tensor in self._tensors(number)[:3])
            params.append(RNNParams(w_ih, w_hh, b, None))
        return as_numpy(tuple(params))


def build_onnxruntime(workload: Workload, what: Pass) -> Entrant:
    """onnxruntime's RNN on the CPU, with all cores."""
    if what != "forward":
        raise Unavailable("computes no gradients")
    if jax.default_backend() != "cpu":
        raise Unavailable("runs on the CPU, unlike JAX here")
    runtime = load("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    load("onnx")  # for `to_onnx`
    layers = [vanilla_rnn(*p.w_ih.shape[::-1]) for p in workload.params]
    model = to_onnx(stack(*layers), workload.params, lengths=workload.lengths is not None)
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds: dict[str, Any] = {"xs": np.ascontiguousarray(workload.xs)}
    if workload.lengths is not None:
        feeds["lengths"] = workload.lengths

    def call() -> Any:
        return session.run(["ys"], feeds)[0]

    return Entrant(call, call)


BUILDERS: dict[str, Builder] = {
    "flax": build_flax,
    "haiku": build_haiku,
    "Keras": build_keras,
    "torch": build_torch,
    "onnxruntime": build_onnxruntime,
}
