"""A character-level language model, and what it writes.

Claim: a deep vanilla network predicts the next character of a text better than counts of the
contexts of two characters do, and what it samples consists of the text's words. Refuted by the
nats a character on the last tenth, which nothing is chosen on, and by the share of sampled words
that the text does not have. On an English text of a million characters it is to reach 1.60 nats
(2.31 bits).

Without `--text FILE` the corpus is one that is on every machine: a million characters of the
sources of Python's standard library, its modules in alphabetic order. (They differ from one version
of Python to another, and the figures with them.) Eight tenths are trained on, many streams at once:
the state is carried through a stream, and the gradient cut after each window (truncated
back-propagation through time). A tenth validates.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from matplotlib.axes import Axes
from pydantic import Field

from experiments.data.characters import Text, encode, measure_counts, read_library
from experiments.data.files import read_text
from experiments.shared.figures import GREY, SERIES, saved_figure, say
from experiments.shared.output import Data, Finding, InputError, Result, Tick, within
from experiments.shared.training import (
    Fraction,
    Positive,
    PositiveFloat,
    Task,
    TrainConfig,
    describe_seeds,
    record,
    start_networks,
    train,
    warm_up_and_cool_down,
)
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    TrainState,
    dense,
    dropout,
    embedding,
    make_truncated_train_step,
    stack,
    vanilla_rnn,
)
from jaxrnn.files import write_atomically
from jaxrnn.sharding import make_sharded_truncated_train_step
from jaxrnn.training import TrainStep

_MARK = 1.60  # nats a character
_TEST_STREAMS = 16
_SHOWN = (80, 8)  # characters of the held-out text in the figure, columns and lines


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `text`."""

    text: Path | None = None
    """A UTF-8 text file; without it the sources of Python's standard library."""
    layers: Annotated[int, Field(ge=1, le=3)] = 2
    """Vanilla layers."""
    hidden_size: Positive = 512
    """Hidden units of each layer."""
    embedding_size: Positive = 64
    """Size of a character's vector."""
    dropout: Fraction = 0.2
    """Rate of the dropout behind each vanilla layer."""
    streams: Positive = 64
    """Streams that the text to train on is cut into, read side by side."""
    window: Positive = 100
    """Characters of truncated back-propagation, each window one update."""
    learning_rate: PositiveFloat = 0.002
    """Adam's highest learning rate; it warms up and then falls along a cosine."""
    steps: Positive = 10
    """Passes over the text at most; validation may stop a network before."""
    eval_every: Positive = 1
    """Passes from one validation to the next."""
    patience: Positive = 3
    """Validations without a new best after which a network has stopped."""
    prompt: str | None = None
    """What samples go on from; without it the end of the text to validate on."""
    temperature: PositiveFloat = 0.7
    """Of the samples: logits are divided by it."""
    sample_size: Positive = 600
    """Characters of a sample."""
    samples: Positive = 3
    """Samples to draw."""


def run(config: Config, progress: Tick) -> Result:
    """Train, measure the last tenth, and write samples."""
    text, splits = _read(config)
    prompt = _encode_prompt(config, text, splits)
    network = _network(config, text)
    task, start = _make_task(config, text, splits, network)
    trained = train(task, start, config, within(progress, 0.0, 0.95, ""))
    progress(0.95, "testing and sampling")
    best = jax.tree.map(lambda leaf: leaf[np.argmin(trained.validation)], trained.params)
    inputs, targets = _cut(text.codes[splits[1] :], _TEST_STREAMS)
    samples = [
        _decode(text, codes)
        for codes in _sample(config, network, best, prompt, jax.random.key(config.seed))
    ]
    data: Data = {
        "text": {"name": text.name, "characters": len(text.codes), "alphabet": text.alphabet},
        "network": {**record(trained), "test": _test(network, trained.params, inputs, targets)},
        "counts": measure_counts(text.codes, splits[1], splits[1], len(text.alphabet)),
        "prompt": _decode(text, prompt),
        "samples": samples,
        "words": _count_words(samples, _decode(text, text.codes[: splits[0]])),
        "held_out": _read_held_out(text, network, best, splits[1]),
    }
    return Result(data, _judge(data), _show_sample(data))


# The text


def _read(config: Config) -> tuple[Text, tuple[int, int]]:
    """The text, and where the parts to fit and to validate on end."""
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


def _encode_prompt(config: Config, text: Text, splits: tuple[int, int]) -> np.ndarray:
    if config.prompt is None:
        return text.codes[splits[1] - 50 : splits[1]]
    unknown = sorted(set(config.prompt) - set(text.alphabet))
    if unknown or not config.prompt:
        got = f"has {unknown[0]!r}, which the text does not" if unknown else "is empty"
        raise InputError(f"--prompt {got}; expected characters of the text")
    return np.array([text.alphabet.index(character) for character in config.prompt], np.int32)


def _decode(text: Text, codes: Any) -> str:
    return "".join(text.alphabet[code] for code in np.asarray(codes).tolist())


def _cut(codes: np.ndarray, streams: int) -> tuple[Array, Array]:
    """The text as streams side by side: characters [T, B], and those that follow them."""
    length = (len(codes) - 1) // streams
    inputs, targets = (
        codes[shift : shift + length * streams].reshape(streams, length).T for shift in (0, 1)
    )
    return jnp.asarray(inputs), jnp.asarray(targets)


# The network


def _network(config: Config, text: Text) -> Layer:
    sizes = [config.embedding_size] + [config.hidden_size] * config.layers
    layers = [embedding(len(text.alphabet), config.embedding_size)]
    for before, after in itertools.pairwise(sizes):
        layers += [vanilla_rnn(before, after), dropout(after, config.dropout)]
    return stack(*layers, dense(config.hidden_size, len(text.alphabet)))


def _make_task(
    config: Config, text: Text, splits: tuple[int, int], network: Layer
) -> tuple[Task, TrainState]:
    """A training step is one pass over the text to fit, an update a window."""
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
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    step = make_truncated_train_step(loss_of_window, optimizer, config.window)

    def shard(mesh: Mesh) -> TrainStep:
        return make_sharded_truncated_train_step(loss_of_window, optimizer, mesh, config.window)

    data = (inputs, targets, validation)
    task = Task("network", step, make_batch, validate, data, config.streams, shard)
    return task, start_networks(network, optimizer, config, (config.streams,))


def _mean_nats(logits: Array, targets: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


@functools.partial(jax.jit, static_argnums=0)
def _test(network: Layer, params: Params, inputs: Array, targets: Array) -> Array:
    """Nats a character [S]."""

    def one(params: Params) -> Array:
        return _mean_nats(network.unroll(params, None, inputs)[1], targets)

    return lax.map(one, params)


def _sample(config: Config, network: Layer, params: Params, prompt: np.ndarray, key: Key) -> Any:
    """Characters [samples, sample_size] that go on from the prompt."""

    @jax.jit
    def draw(params: Params, key: Key) -> Array:
        start = jnp.repeat(jnp.asarray(prompt)[:, None], config.samples, axis=1)
        state, logits = network.unroll(params, None, start)

        def write(carry: tuple[Any, Array], key: Key) -> tuple[tuple[Any, Array], Array]:
            state, logits = carry
            characters = jax.random.categorical(key, logits / config.temperature)
            return network.step(params, state, characters), characters

        keys = jax.random.split(key, config.sample_size)
        return lax.scan(write, (state, logits[-1]), keys)[1].T

    return draw(params, key)


def _read_held_out(text: Text, network: Layer, params: Params, start: int) -> Data:
    """The beginning of the held-out text, and the nats of each of its characters."""
    codes = text.codes[start : start + 1 + _SHOWN[0] * _SHOWN[1]]
    logits = network.unroll(params, None, jnp.asarray(codes[:-1]))[1]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(codes[1:]))
    return {"text": _decode(text, codes[1:]), "nats": np.asarray(nats)}


def _count_words(samples: list[str], text: str) -> Data:
    """How many words of three letters or more the samples have, and how many of them the text."""
    known = set(_find_words(text))
    words = [word for sample in samples for word in _find_words(sample)]
    return {"sampled": len(words), "known": sum(word in known for word in words)}


def _find_words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{3,}", text.lower())


# The table and the figure


def _judge(data: Data) -> list[Finding]:
    nats, counts, words = data["network"]["test"], data["counts"], data["words"]
    mean = float(np.mean(nats))
    simple = ", ".join(f"{name} {value / np.log(2):.3f}" for name, value in counts.items())
    return [
        Finding(
            "counts",
            f"The network predicts {data['text']['name']} better than counts of contexts.",
            "its nats a character on the last tenth are fewer than those of contexts of two",
            f"{describe_seeds(np.asarray(nats) / np.log(2))} bits; {simple}",
            mean < counts["order 2"],
        ),
        Finding(
            "mark",
            f"It needs less than {_MARK:.2f} nats a character.",
            "so on the last tenth (the mark is meant for a million characters of English)",
            f"{describe_seeds(nats)} nats; on validation "
            f"{describe_seeds(data['network']['validation'])}",
            mean < _MARK,
        ),
        Finding(
            "words",
            "What it writes consists of words.",
            "of its words of three letters and more, the text trained on has 80 %",
            f"{words['known']} of {words['sampled']}",
            words["known"] >= 0.8 * words["sampled"] > 0,
        ),
    ]


def _show_sample(data: Data) -> str:
    return f"A sample, from the prompt {data['prompt']!r}:\n\n{data['samples'][0]}"


def plot(data: Data, folder: Path) -> None:
    """Draw the training and a page of the held-out text; write the samples."""
    rule = "\n\n" + "-" * 80 + "\n\n"
    samples = rule.join(data["prompt"] + sample for sample in data["samples"])
    write_atomically(folder / "samples.txt", (samples + "\n").encode())
    with saved_figure(folder / "text.png", (8.0, 6.5)) as figure:
        top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
        curves = data["network"]["curves"]
        for name, colour in (("train", SERIES[0]), ("validation", SERIES[1])):
            bits = np.asarray(curves[name]) / np.log(2)
            top.plot(curves["steps"], bits[:, 0], color=colour, marker="o", ms=3, label=name)
            top.plot(curves["steps"], bits[:, 1:], color=colour, marker="o", ms=3)
        for (name, nats), style in zip(data["counts"].items(), (":", "-.", "--"), strict=True):
            top.axhline(nats / np.log(2), color=GREY, ls=style, lw=1, label=f"{name} (test)")
        top.set(xlabel="passes over the text", ylabel="bits a character")
        top.legend(ncols=2, loc="upper right", frameon=True, edgecolor="none", framealpha=1.0)
        _draw_page(bottom, data["held_out"])
        bits = np.mean(data["network"]["test"]) / np.log(2)
        say(
            figure,
            f"{data['text']['name']}: {bits:.2f} bits a character",
            "below, held-out text: the redder a character, the less it was expected",
        )


def _draw_page(axes: Axes, held_out: Data) -> None:
    columns, rows = _SHOWN
    nats = np.full(columns * rows, np.nan)
    nats[: len(held_out["nats"])] = held_out["nats"]
    axes.imshow(nats.reshape(rows, columns), cmap="Reds", vmin=0, vmax=8, aspect="auto")
    for place, character in enumerate(held_out["text"]):
        shown = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "$": r"\$"}.get(
            character, character
        )
        colour = "white" if nats[place] > 5 else "black"
        axes.text(
            place % columns, place // columns, shown, color=colour, fontsize=8, ha="center",
            va="center", family="monospace",
        )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
