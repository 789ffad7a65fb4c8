"""Polyphonic music: which of 88 keys sound in the next frame of a piano roll.

Claim: on pieces held out, a vanilla network trained with care predicts at least 4 % better than one
layer of 150 units trained plainly; an ensemble of such networks better still; and both better than
models without a network. Refuted by the negative log-likelihood a frame, in nats, summed over the
88 keys: frame t + 1 is predicted from the frames up to t, the first of a piece is not scored, and
all the others of all pieces are pooled. Source: Boulanger-Lewandowski, Bengio & Vincent 2012,
"Modeling temporal dependencies in high-dimensional sequences" (which scores the first, too).

Without `--data` the pieces are Bach's chorales as music21 carries them (experiments/data/
piano_rolls.py states how they are split and brought to one key). `--data FILE.mat` reads the
field's standard files. Training, stopping and every choice look at the validation pieces alone.

The plain network is `torch.nn.RNN` with a dense readout, from torch's uniform weights, by Adam and
early stopping. What the other adds: dropped recurrent weights, one pattern a step of training
(DropConnect; Merity et al. 2018, "Regularizing and optimizing LSTM language models"), dropout
before every layer, weight decay, a falling learning rate, a hidden layer in the readout, and what
keys share: the network also reads how many keys of each of the 12 pitch classes sound, may raise or
lower all keys of a class together, and every key's logit goes through one small network, the same
for all, that sees the keys around it. An ensemble averages probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.midi import write_midi
from experiments.data.piano_rolls import (
    PianoRolls,
    import_extra,
    load_chorales,
    pitches_of,
    read_mat,
    roll_of,
    score_markov,
)
from experiments.music.figures import plot_rolls, plot_scores
from experiments.music.networks import drop_connect, plain_network, sample, sharing_network
from experiments.shared.findings import Data, Finding, Result, describe_seeds
from experiments.shared.options import (
    Fraction,
    InputError,
    NotNegative,
    Positive,
    PositiveFloat,
    TrainConfig,
)
from experiments.shared.output import Tick, within
from experiments.shared.training import Task, record, start_networks, train
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    TrainState,
    make_train_step,
    masked_mean,
    pack_sequences,
    pad_sequences,
)

_ROWS = 16  # that pieces are packed into where they are scored
_GAIN = 0.04


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `music`."""

    data: Path | None = None
    """A .mat file with traindata, validdata and testdata; without it Bach's chorales."""
    hidden_size: Positive = 200
    """Hidden units of each layer."""
    layers: Positive = 1
    """Vanilla layers."""
    drop_connect: Fraction = 0.5
    """Share of the recurrent weights that a step of training drops."""
    dropout: Fraction = 0.2
    """Share of the units that are dropped above each hidden layer."""
    input_dropout: Fraction = 0.1
    """Share of the inputs that are dropped."""
    learning_rate: PositiveFloat = 0.002
    """AdamW's learning rate at its peak."""
    weight_decay: NotNegative = 0.01
    """AdamW's weight decay."""
    plain_learning_rate: PositiveFloat = 0.001
    """Adam's learning rate for the plain network."""
    plain_batch_size: Positive = 4
    """Whole pieces of a training step of the plain network."""
    plain_steps: Positive = 16000
    """Training steps of the plain network at most; validation stops it long before."""
    batch_size: Positive = 16
    """Pieces of a training step."""
    window: Positive = 64
    """Frames of a piece that are trained on at a time: a random stretch of a longer one."""
    primed: Positive = 8
    """Frames of a test piece that a sample goes on from."""
    sample_frames: Positive = 64
    """Frames of a sample with those."""
    samples: Positive = 3
    """Samples to draw."""
    seeds: Positive = 5
    """Networks of the ensemble, trained in one vmapped call; and as many plain ones."""
    steps: Positive = 4000
    """Training steps at most; validation may stop a network before."""
    eval_every: Positive = 100
    """Training steps from one validation to the next, in one compiled call."""
    patience: Positive = 15
    """Validations without a new best after which a network has stopped."""


class _Scored(NamedTuple):
    """Pieces packed into rows: frames, what is a frame, where pieces begin; and the frames that
    follow, and which of them are scored."""

    xs: Array  # [T, R, KEYS]
    mask: Array  # [T, R], as all below
    resets: Array
    following: Array  # [T, R, KEYS]
    scored: Array


class _Music(NamedTuple):
    """The pieces as the networks read them; those to train on padded."""

    pieces: Array  # [T, N, KEYS]
    lengths: Array  # [N]
    valid: _Scored
    test: _Scored


def run(config: Config, progress: Tick) -> Result:
    """Train the networks and the plain ones, score them and draw samples."""
    if config.sample_frames <= config.primed:
        raise InputError(
            f"--sample-frames is {config.sample_frames}, expected over --primed, {config.primed}"
        )
    import_extra("mido")  # what is missing is missed before hours of training
    rolls = _read(config, within(progress, 0.0, 0.1, "data"))
    music = _pack(rolls)
    network = sharing_network(
        config.hidden_size, config.layers, config.dropout, config.input_dropout
    )
    plain = plain_network()
    task, start = _make_task(config, music, network)
    trained = train(task, start, config, within(progress, 0.1, 0.7, "network"))
    task, start = _make_plain_task(config, music, plain)
    part = within(progress, 0.7, 0.95, "plain network")
    plainly = train(task, start, config, part, steps=config.plain_steps)
    progress(0.95, "scoring and sampling")
    best = int(np.argmin(trained.validation))
    data: Data = {
        "name": rolls.name,
        "pieces": {split: len(getattr(rolls, split)) for split in ("train", "valid", "test")},
        "networks": {"network": record(trained), "plain": record(plainly)},
        "test": _score_all(rolls, music.test, (network, trained.params), (plain, plainly.params)),
        "samples": _sample_all(
            config, rolls, network, jax.tree.map(lambda leaf: leaf[best], trained.params)
        ),
    }
    return Result(data, _judge(data))


def _read(config: Config, tick: Tick) -> PianoRolls:
    return load_chorales(tick) if config.data is None else read_mat(config.data)


def _pack(rolls: PianoRolls) -> _Music:
    pieces, _ = pad_sequences(rolls.train)
    lengths = jnp.asarray([len(roll) for roll in rolls.train], jnp.int32)
    return _Music(pieces, lengths, _pack_split(rolls.valid), _pack_split(rolls.test))


def _pack_split(rolls: list[np.ndarray]) -> _Scored:
    packed = pack_sequences(rolls, num_rows=min(_ROWS, len(rolls)))
    assert packed.mask is not None
    following = jnp.roll(packed.xs, -1, axis=0)
    scored = jnp.roll(packed.mask & ~packed.resets, -1, axis=0).at[-1].set(False)
    return _Scored(packed.xs, packed.mask, packed.resets, following, scored)


# Training


def _make_task(config: Config, music: _Music, network: Layer) -> tuple[Task, TrainState]:
    def loss_fn(params: Params, batch: Any, key: Key) -> tuple[Array, dict[str, Array]]:
        key_weights, key_units = jax.random.split(key)
        dropped = drop_connect(params, config.drop_connect, key_weights)
        return _loss_of_batch(network, dropped, batch, key_units), {}

    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(100, config.steps // 10), config.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay)
    )
    batch = (config.batch_size, config.window)
    return _start(config, music, network, "network", loss_fn, optimizer, batch)


def _make_plain_task(config: Config, music: _Music, network: Layer) -> tuple[Task, TrainState]:
    def loss_fn(params: Params, batch: Any, key: Key) -> tuple[Array, dict[str, Array]]:
        del key
        return _loss_of_batch(network, params, batch, None), {}

    optimizer = optax.adam(config.plain_learning_rate)
    batch = (config.plain_batch_size, music.pieces.shape[0])
    return _start(config, music, network, "plain", loss_fn, optimizer, batch)


def _start(
    config: Config,
    music: _Music,
    network: Layer,
    name: str,
    loss_fn: Any,
    optimizer: optax.GradientTransformation,
    batch: tuple[int, int],
) -> tuple[Task, TrainState]:
    """A task of batches of so many pieces and frames, and the networks that it starts from."""

    def make_batch(key: Key, step: Array) -> tuple[Array, Array]:
        del step
        return _draw_batch(key, music, *batch)

    def validate(params: Params) -> Array:
        scored = music.valid
        losses = _loss_of_logits(_unroll_scored(network, params, scored), scored.following)
        return masked_mean(losses, scored.scored)

    def count_scored(part: Any) -> Array:
        return jnp.sum(part[1][1:])

    step = make_train_step(loss_fn, optimizer)
    task = Task(name, step, make_batch, validate, music, batch[0], weight_fn=count_scored)
    return task, start_networks(network, optimizer, config)


def _draw_batch(key: Key, music: _Music, size: int, window: int) -> tuple[Array, Array]:
    """Stretches [W + 1, B, KEYS] of random pieces and their mask [W + 1, B].

    A piece is drawn the more often the more windows it has, so that frames count alike.
    """
    longest = music.pieces.shape[0]
    window = min(window, longest - 1)
    key_pieces, key_starts = jax.random.split(key)
    weights = jnp.log(jnp.maximum(music.lengths - 1, window).astype(jnp.float32))
    drawn = jax.random.categorical(key_pieces, weights, shape=(size,))
    starts = jax.random.randint(key_starts, (size,), 0, _count_starts(music.lengths[drawn], window))
    frames = starts + jnp.arange(window + 1)[:, None]  # [W + 1, B]
    mask = frames < music.lengths[drawn]
    return music.pieces[jnp.minimum(frames, longest - 1), drawn], mask


def _count_starts(lengths: Array, window: int) -> Array:
    return jnp.maximum(lengths - window, 1)


def _loss_of_batch(network: Layer, params: Params, batch: Any, key: Key | None) -> Array:
    frames, mask = batch
    _, logits = network.unroll(params, None, frames[:-1], mask=mask[:-1], key=key)
    return masked_mean(_loss_of_logits(logits, frames[1:]), mask[1:])


def _loss_of_logits(logits: Array, frames: Array) -> Array:
    """The negative log-likelihood of each frame [...], in nats, summed over its keys."""
    targets = frames.astype(logits.dtype)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def _unroll_scored(network: Layer, params: Params, scored: _Scored) -> Array:
    xs, mask, resets = scored.xs, scored.mask, scored.resets
    return network.unroll(params, None, xs, mask=mask, resets=resets)[1]


# The test


def _score_all(
    rolls: PianoRolls,
    test: _Scored,
    network: tuple[Layer, Params],
    plain: tuple[Layer, Params],
) -> Data:
    """Nats a frame of the test pieces, for every model."""
    singles, ensemble = _score_networks(*network, test)
    plains, plain_ensemble = _score_networks(*plain, test)
    return {
        "marginal": score_markov(rolls, np.zeros_like),
        "Markov": score_markov(rolls, lambda before: before),
        "plain": plains,  # [S]
        "plain ensemble": plain_ensemble,
        "network": singles,  # [S]
        "ensemble": ensemble,
    }


def _score_networks(network: Layer, params: Params, test: _Scored) -> tuple[np.ndarray, float]:
    """Of each network [S], and of the mean of their probabilities."""

    @jax.jit
    def score(params: Params, test: _Scored) -> tuple[Array, Array]:
        logits = jax.vmap(lambda params: _unroll_scored(network, params, test))(params)
        on, off = (  # the logarithms of the mean probabilities
            jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), axis=0) - math.log(len(logits))
            for sign in (1.0, -1.0)
        )
        pooled = -jnp.sum(jnp.where(test.following == 1, on, off), axis=-1)
        singles = jax.vmap(lambda z: masked_mean(_loss_of_logits(z, test.following), test.scored))
        return singles(logits), masked_mean(pooled, test.scored)

    singles, ensemble = score(params, test)
    return np.asarray(singles, np.float64), float(ensemble)


# Samples


def _sample_all(config: Config, rolls: PianoRolls, network: Layer, params: Params) -> Data:
    """Openings of test pieces as they are, and as the network goes on from them."""
    primed = min(config.primed, max(map(len, rolls.test)))
    pieces = [piece for piece in rolls.test if len(piece) >= primed]
    pieces = [pieces[number % len(pieces)] for number in range(config.samples)]
    opening = jnp.asarray(np.stack([piece[:primed] for piece in pieces], axis=1))
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    drawn = sample(network, config.sample_frames - primed, params, opening, key)
    sampled = np.concatenate([opening, drawn])
    return {
        "primed": primed,
        "real": [pitches_of(piece[: config.sample_frames]) for piece in pieces],
        "sampled": [pitches_of(roll) for roll in sampled.swapaxes(0, 1)],
    }


# The table and the figures


def _judge(data: Data) -> list[Finding]:
    test = data["test"]
    ours, plain = float(np.mean(test["network"])), float(np.mean(test["plain"]))
    return [
        Finding(
            "single",
            f"A network trained with care predicts {data['name']} better than a plain one.",
            f"its mean test NLL is at least {_GAIN:.0%} lower",
            f"{describe_seeds(test['network'])} against {describe_seeds(test['plain'])} nats a "
            f"frame: {1 - ours / plain:.1%} lower",
            ours <= (1 - _GAIN) * plain,
        ),
        Finding(
            "ensemble",
            "The mean of the networks' probabilities predicts better than they do.",
            "its test NLL is below the mean of the networks'",
            f"{test['ensemble']:.3f} nats a frame, {1 - test['ensemble'] / plain:.1%} below plain; "
            f"the plain ones' ensemble {test['plain ensemble']:.3f}",
            test["ensemble"] < ours,
        ),
        Finding(
            "simple",
            "It predicts better than models without a network.",
            "its mean test NLL is below that of each key's frequency, and of each key given itself "
            "in the frame before (Markov)",
            f"{test['marginal']:.3f} by frequencies, {test['Markov']:.3f} by Markov",
            ours < min(test["marginal"], test["Markov"]),
        ),
    ]


def plot(data: Data, folder: Path) -> None:
    """Draw rolls.png and nll.png; write every sample, and what it began as, as MIDI."""
    samples = data["samples"]
    for number in range(len(samples["sampled"])):
        for kind in ("real", "sampled"):
            roll = roll_of(samples[kind][number])
            write_midi(folder / f"{kind}-{number + 1}.mid", roll)
    plot_rolls(data, folder / "rolls.png")
    plot_scores(data, folder / "nll.png")
