"""A character-level language model, and what it writes.

Claim: a deep vanilla network predicts the next character of a text better than counts of
two-character contexts do, and its samples consist of the text's words. Refuted by the nats per
character on the last tenth, which nothing is chosen on, and by the share of sampled words that do
not occur in the text. On an English text of a million characters it should need less than 1.60 nats
(2.31 bits), and with `--wide` fewer than one wide layer of as many weights.

Without `--text FILE` the corpus is one found on every machine: a million characters of the sources
of Python's standard library, its modules in alphabetical order. (They differ from one version of
Python to another, and so do the results.) Eight tenths are trained on, many streams at once: the
state is carried through a stream, and the gradient is cut after each window (truncated
back-propagation through time). A tenth is for validation. With `--adapt` networks are also tested
while they go on learning from what they have just predicted.

Layers add to what the one below puts out. What keeps so large a network from learning a million
characters by heart is decay of its weights above all, then dropped recurrent weights and dropout.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from pydantic import Field

from experiments.data.characters import Text, encode, encode_with, measure_counts, read_library
from experiments.data.files import read_text
from experiments.shared.findings import Data, Result, describe_seeds
from experiments.shared.model_files import load_networks, read_inputs, save_networks
from experiments.shared.options import (
    Fraction,
    InputError,
    NotNegative,
    Positive,
    PositiveFloat,
    TrainConfig,
)
from experiments.shared.output import Tick, within
from experiments.shared.training import (
    Task,
    choose_best,
    record,
    start_networks,
    train,
    warm_up_and_cool_down,
)
from experiments.text.adaptation import RATES, STREAMS, choose_rate, measure_adapted
from experiments.text.findings import count_words, judge, show_sample
from experiments.text.model import deep_network, widen
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    TrainState,
    generate,
    make_train_step,
    truncate_train_step,
)

_TEST_STREAMS = 16
PAGE = (80, 8)  # columns and lines of the held-out text in the figure


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `text`."""

    with_source: ClassVar[frozenset[str]] = frozenset(
        ("text", "prompt", "temperature", "sample_size", "samples", "adapt")
    )

    text: Path | None = None
    """A UTF-8 text file; without it the sources of Python's standard library. With --from: one to
    predict, if any."""
    layers: Annotated[int, Field(ge=1, le=16)] = 4
    """Vanilla layers; all but the first add to what the one below puts out."""
    hidden_size: Positive = 512
    """Hidden units of each layer."""
    embedding_size: Positive = 128
    """Size of a character's embedding."""
    dropout: Fraction = 0.2
    """Dropout rate after each vanilla layer."""
    drop_connect: Fraction = 0.1
    """Share of the recurrent weights that each update drops."""
    weight_decay: NotNegative = 0.4
    """AdamW's weight decay."""
    streams: Positive = 64
    """Streams that the training text is cut into, read side by side."""
    window: Positive = 50
    """Characters per window of truncated back-propagation; each window is one update."""
    learning_rate: PositiveFloat = 0.002
    """AdamW's peak learning rate; it warms up and then falls along a cosine."""
    steps: Positive = 12
    """Maximum number of passes over the text; validation may stop a network earlier."""
    eval_every: Positive = 1
    """Passes from one validation to the next."""
    patience: Positive = 3
    """Validations without a new best after which a network stops."""
    wide: bool = False
    """Whether also one wide layer of as many weights is trained."""
    adapt: bool = False
    """Whether networks also go on learning from the text that they have just predicted."""
    prompt: str | None = None
    """The beginning that samples continue; by default the end of the validation text."""
    temperature: PositiveFloat = 0.7
    """Sampling temperature: logits are divided by it."""
    sample_size: Positive = 600
    """Characters per sample."""
    samples: Positive = 3
    """Number of samples."""


@dataclass(frozen=True)
class TextInputs:
    """What the networks read: places in an alphabet; what samples continue by default; and the
    learning rate of networks that go on learning."""

    alphabet: str
    prompt: str
    rate: float


def run(config: Config, progress: Tick) -> Result:
    """Train, test on the last tenth, and draw samples."""
    if config.source is not None:
        return _use(config, config.source, progress)
    text, splits = _read(config)
    default = _decode(text.alphabet, text.codes[splits[1] - 50 : splits[1]])
    prompt = _encode_prompt(config.prompt, default, text.alphabet)
    network = _network(config, text.alphabet)
    inputs, targets = _cut(text.codes[splits[1] :], _TEST_STREAMS)
    task, start = _make_task(config, text, splits, network, "network")
    share = 0.5 if config.wide else 0.95
    trained = train(task, start, config, within(progress, 0.0, share, ""))
    wide = None
    if config.wide:
        layer = _network(_widen(config), text.alphabet)
        task, start = _make_task(config, text, splits, layer, "wide")
        widely = train(task, start, config, within(progress, share, 0.95, "one wide layer"))
        wide = {**record(widely), "test": _test(layer, widely.params, inputs, targets)}
    progress(0.95, "testing and sampling")
    rate = RATES[0]
    if config.adapt:
        validation = _cut(text.codes[splits[0] : splits[1]], STREAMS)
        rate = choose_rate(network, trained.params, *validation)
    kept = {"network": (network, trained.params, trained.validation)}
    save_networks(config, "text", TextInputs(text.alphabet, default, rate), kept)
    best = choose_best(trained)
    samples = _sample(config, network, best, prompt, text.alphabet)
    data: Data = {
        "text": {"name": text.name, "characters": len(text.codes), "alphabet": text.alphabet},
        "network": {**record(trained), "test": _test(network, trained.params, inputs, targets)},
        "wide": wide,
        "adapted": _adapt(config, network, trained.params, text.codes[splits[1] :], rate),
        "counts": measure_counts(text.codes, splits[1], splits[1], len(text.alphabet)),
        "prompt": _decode(text.alphabet, prompt),
        "samples": samples,
        "words": count_words(samples, _decode(text.alphabet, text.codes[: splits[0]])),
        "held_out": _read_held_out(text, network, best, splits[1]),
    }
    return Result(data, judge(data), show_sample(data))


def _use(config: Config, source: Path, progress: Tick) -> Result:
    """Continue the prompt, and predict a text if there is one, with the networks of another run."""
    inputs = read_inputs(source, TextInputs)
    network = _network(config, inputs.alphabet)
    params = load_networks(source, "network", network)
    prompt = _encode_prompt(config.prompt, inputs.prompt, inputs.alphabet)
    best = jax.tree.map(lambda leaf: leaf[0], params)
    progress(0.2, "sampling")
    data: Data = {
        "prompt": _decode(inputs.alphabet, prompt),
        "samples": _sample(config, network, best, prompt, inputs.alphabet),
    }
    said = show_sample(data)
    if config.text is not None:
        progress(0.6, "predicting")
        text = encode_with(str(config.text), read_text(config.text), inputs.alphabet)
        if len(text.codes) <= _TEST_STREAMS:
            raise InputError(
                f"{config.text} has {len(text.codes)} characters, expected more than "
                f"{_TEST_STREAMS}"
            )
        nats = _test(network, params, *_cut(text.codes, _TEST_STREAMS))
        data |= {"text": {"name": config.text.name}, "network": {"test": nats}}
        data["adapted"] = _adapt(config, network, params, text.codes, inputs.rate)
        data["held_out"] = _read_held_out(text, network, best, 0)
        adapted = data["adapted"]
        learning = "" if adapted is None else f", {describe_seeds(adapted)} learning as it goes"
        said = f"{text.name}: {describe_seeds(nats)} nats per character{learning}\n\n{said}"
    return Result(data, [], said)


# The text


def _read(config: Config) -> tuple[Text, tuple[int, int]]:
    """The text, and where its training and validation parts end."""
    if config.text is None:
        name, text = "Python's standard library", read_library()
    else:
        name, text = config.text.name, read_text(config.text)
    least = 10 * max(config.streams, _TEST_STREAMS) * 2
    if len(text) < least:
        raise InputError(
            f"{config.text or name} has {len(text)} characters, expected at least {least} for "
            f"{config.streams} streams"
        )
    splits = 8 * len(text) // 10, 9 * len(text) // 10
    return encode(str(config.text or name), text, splits[0])._replace(name=name), splits


def _encode_prompt(prompt: str | None, default: str, alphabet: str) -> np.ndarray:
    if prompt is None:
        prompt = default
    unknown = sorted(set(prompt) - set(alphabet))
    if unknown or not prompt:
        got = f"has {unknown[0]!r}, which the text does not" if unknown else "is empty"
        raise InputError(f"--prompt {got}; expected characters of the text")
    return np.array([alphabet.index(character) for character in prompt], np.int32)


def _decode(alphabet: str, codes: Any) -> str:
    return "".join(alphabet[code] for code in np.asarray(codes).tolist())


def _cut(codes: np.ndarray, streams: int) -> tuple[Array, Array]:
    """The text as streams side by side: characters [T, B], and those that follow them."""
    length = (len(codes) - 1) // streams
    inputs, targets = (
        codes[shift : shift + length * streams].reshape(streams, length).T for shift in (0, 1)
    )
    return jnp.asarray(inputs), jnp.asarray(targets)


# The network


def _network(config: Config, alphabet: str) -> Layer:
    sizes = len(alphabet), config.embedding_size, config.hidden_size, config.layers
    return deep_network(*sizes, config.dropout, config.drop_connect)


def _widen(config: Config) -> Config:
    units = widen(config.hidden_size, config.layers)
    return dataclasses.replace(config, layers=1, hidden_size=units)


def _make_task(
    config: Config, text: Text, splits: tuple[int, int], network: Layer, name: str
) -> tuple[Task, TrainState]:
    """A training step is one pass over the training text, with one update per window."""
    inputs, targets = _cut(text.codes[: splits[0]], config.streams)
    validation = _cut(text.codes[splits[0] : splits[1]], _TEST_STREAMS)
    begins = jnp.arange(len(inputs)) == 0
    resets = jnp.broadcast_to(begins[:, None], inputs.shape)

    def loss_of_window(
        params: Params, state: Any, batch: Any, key: Key
    ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        inputs, targets, resets = batch
        state, logits = network.unroll(params, state, inputs, resets=resets, key=key)
        return _mean_nats(logits, targets), (state, {})

    def make_batch(key: Key, step: Array) -> Any:
        del key, step
        return inputs, targets, resets

    def validate(params: Params) -> Array:
        return _mean_nats(network.unroll(params, None, validation[0])[1], validation[1])

    updates = config.steps * -(-len(inputs) // config.window)
    rate = warm_up_and_cool_down(config.learning_rate, updates)
    adamw = optax.adamw(rate, weight_decay=config.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    step = make_train_step(loss_of_window, optimizer, has_carry=True)
    step = truncate_train_step(step, config.window)
    data = (inputs, targets, validation)
    task = Task(name, step, make_batch, validate, data, config.streams)
    return task, start_networks(network, optimizer, config, (config.streams,))


def _mean_nats(logits: Array, targets: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


@functools.partial(jax.jit, static_argnums=0)
def _test(network: Layer, params: Params, inputs: Array, targets: Array) -> Array:
    """Nats per character [S]."""

    def one(params: Params) -> Array:
        return _mean_nats(network.unroll(params, None, inputs)[1], targets)

    return lax.map(one, params)


def _adapt(
    config: Config, network: Layer, params: Params, codes: np.ndarray, rate: float
) -> np.ndarray | None:
    """Nats per character [S] of networks that learn as they go, if they should."""
    if not config.adapt:
        return None
    return np.asarray(measure_adapted(network, params, *_cut(codes, STREAMS), rate))


def _sample(
    config: Config, network: Layer, params: Params, prompt: np.ndarray, alphabet: str
) -> list[str]:
    """Texts of `sample_size` characters that continue the prompt."""

    def feed(logits: Array, key: Key | None) -> Array:
        assert key is not None
        return jax.random.categorical(key, logits / config.temperature)

    @jax.jit
    def draw(params: Params, key: Key) -> Array:
        start = jnp.repeat(jnp.asarray(prompt)[:, None], config.samples, axis=1)
        state, logits = network.unroll(params, None, start)
        key_first, key_rest = jax.random.split(key)
        first = feed(logits[-1], key_first)
        count = config.sample_size - 1
        _, (rest, _) = generate(network, params, state, first, count, feed=feed, key=key_rest)
        return jnp.concatenate([first[None], rest]).T

    return [_decode(alphabet, codes) for codes in draw(params, jax.random.key(config.seed))]


def _read_held_out(text: Text, network: Layer, params: Params, start: int) -> Data:
    """The beginning of the held-out text, and the nats of each of its characters."""
    codes = text.codes[start : start + 1 + PAGE[0] * PAGE[1]]
    logits = network.unroll(params, None, jnp.asarray(codes[:-1]))[1]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(codes[1:]))
    return {"text": _decode(text.alphabet, codes[1:]), "nats": np.asarray(nats)}
