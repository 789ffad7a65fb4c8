"""Polyphonic music: which of 88 keys sound in the next frame of a piano roll.

Claim: on held-out pieces, a carefully trained vanilla network predicts at least 4 % better than a
plainly trained layer of 150 units; an ensemble of such networks predicts better still; and both
predict better than models without a network. Refuted by the negative log-likelihood per frame, in
nats, summed over the 88 keys: frame t + 1 is predicted from the frames up to t, and the mean is
over all frames of all pieces but the first of each. Source: Boulanger-Lewandowski, Bengio & Vincent
2012, "Modeling temporal dependencies in high-dimensional sequences" (which scores first frames,
too).

By default the pieces are the chorales by Bach that music21 includes (experiments/data/
piano_rolls.py says how they are split and transposed). `--data FILE.mat` reads the field's standard
files. Early stopping and every choice use the validation pieces only.

The plain network is `torch.nn.RNN` with a dense readout, started with torch's uniform weights and
trained by Adam with early stopping. The other adds: dropped recurrent weights, one pattern per
training step (DropConnect; Merity et al. 2018, "Regularizing and optimizing LSTM language models"),
dropout before every layer, weight decay, a learning rate schedule, a hidden layer in the readout,
and weights that keys share: the network also reads how many keys of each of the 12 pitch classes
sound, can raise or lower all keys of a class together, and computes every key's logit by the same
small network, which sees the keys around it. An ensemble averages probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.midi import read_midi
from experiments.data.piano_rolls import (
    KEYS,
    LOWEST,
    PianoRolls,
    import_extra,
    load_chorales,
    pitches_of,
    read_mat,
    roll_of,
    shift_keys,
)
from experiments.music.networks import drop_connect, plain_network, sample, sharing_network
from experiments.music.pieces import Pieces, arrange_pieces, draw_batch
from experiments.music.scoring import score_batch, score_models, score_pieces
from experiments.shared.findings import Data, Finding, Result, describe_seeds
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
from experiments.shared.training import Task, record, start_networks, train
from jaxrnn import (
    Array,
    Key,
    Layer,
    Params,
    TrainState,
    make_train_step,
)

_GAIN = 0.04  # of the claim


@dataclass(frozen=True)
class Config(TrainConfig):
    """The options of `music`."""

    with_source: ClassVar[frozenset[str]] = frozenset(
        ("prime", "primed", "sample_frames", "samples")
    )

    data: Path | None = None
    """A .mat file with traindata, validdata and testdata; by default Bach's chorales."""
    hidden_size: Positive = 200
    """Hidden units per layer."""
    layers: Positive = 1
    """Number of vanilla layers."""
    drop_connect: Fraction = 0.5
    """Share of the recurrent weights that each training step drops."""
    dropout: Fraction = 0.2
    """Dropout rate of the outputs of each hidden layer."""
    input_dropout: Fraction = 0.1
    """Dropout rate of the inputs."""
    learning_rate: PositiveFloat = 0.002
    """AdamW's peak learning rate."""
    weight_decay: NotNegative = 0.01
    """AdamW's weight decay."""
    plain_learning_rate: PositiveFloat = 0.001
    """Adam's learning rate for the plain network."""
    plain_batch_size: Positive = 4
    """Pieces per training step of the plain network, each whole."""
    plain_steps: Positive = 16000
    """Maximum number of training steps of the plain network; validation stops it much earlier."""
    batch_size: Positive = 16
    """Pieces per training step."""
    window: Positive = 64
    """Frames per piece and training step: a random stretch of a longer piece."""
    prime: Path | None = None
    """With --from: a MIDI file whose beginning samples continue, in whatever key it is."""
    primed: Positive = 8
    """Frames of a piece that a sample continues."""
    sample_frames: Positive = 64
    """Frames of a sample, including those."""
    samples: Positive = 3
    """Number of samples to draw."""
    seeds: Positive = 5
    """Networks in the ensemble, trained in one vmapped call, and as many plain networks."""
    steps: Positive = 4000
    """Maximum number of training steps; validation may stop a network earlier."""
    eval_every: Positive = 100
    """Training steps between validations, in one compiled call."""
    patience: Positive = 15
    """Validations without a new best after which a network stops."""


@dataclass(frozen=True)
class RollInputs:
    """What the networks read: which of `keys` keys sound in a frame, from MIDI number `lowest` up;
    and an opening [frames] of sounding pitches that samples continue by default."""

    keys: int
    lowest: int
    opening: list[list[int]]


def run(config: Config, progress: Tick) -> Result:
    """Train the networks and the plain networks, score them and draw samples."""
    if config.sample_frames <= config.primed:
        raise InputError(
            f"--sample-frames is {config.sample_frames}, expected more than --primed "
            f"{config.primed}"
        )
    import_extra("mido")  # fails now rather than after the training
    network = sharing_network(
        config.hidden_size, config.layers, config.dropout, config.input_dropout
    )
    if config.source is not None:
        return _use(config, config.source, network, progress)
    if config.prime is not None:
        raise InputError("--prime is what networks continue that --from names")
    rolls = _read(config, within(progress, 0.0, 0.1, "data"))
    pieces = arrange_pieces(rolls)
    plain = plain_network()
    task, start = _make_task(config, pieces, network)
    trained = train(task, start, config, within(progress, 0.1, 0.7, "network"))
    task, start = _make_plain_task(config, pieces, plain)
    part = within(progress, 0.7, 0.95, "plain network")
    plainly = train(task, start, config, part, steps=config.plain_steps)
    inputs = RollInputs(KEYS, LOWEST, pitches_of(rolls.test[0][: config.primed]))
    kept = {
        name: (layer, result.params, result.validation)
        for name, layer, result in (("network", network, trained), ("plain", plain, plainly))
    }
    save_networks(config, "music", inputs, kept)
    progress(0.95, "scoring and sampling")
    best = int(np.argmin(trained.validation))
    data: Data = {
        "name": rolls.name,
        "pieces": {split: len(getattr(rolls, split)) for split in ("train", "valid", "test")},
        "networks": {"network": record(trained), "plain": record(plainly)},
        "test": score_models(
            rolls, pieces.test, (network, trained.params), (plain, plainly.params)
        ),
        "samples": _sample_all(
            config, rolls, network, jax.tree.map(lambda leaf: leaf[best], trained.params)
        ),
    }
    return Result(data, _judge(data))


def _use(config: Config, source: Path, network: Layer, progress: Tick) -> Result:
    """Continue a MIDI file, or else an opening of a test piece, with networks of another run."""
    inputs = read_inputs(source, RollInputs)
    params = jax.tree.map(lambda leaf: leaf[0], load_networks(source, "network", network))
    roll = roll_of(inputs.opening) if config.prime is None else read_midi(config.prime)
    opening, shift = _transpose(network, params, roll[: config.primed])
    progress(0.3, "sampling")
    openings = jnp.asarray(np.stack([opening] * config.samples, axis=1))
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    drawn = sample(network, config.sample_frames - len(opening), params, openings, key)
    sampled = np.concatenate([openings, drawn]).swapaxes(0, 1)
    data: Data = {
        "name": "samples" if config.prime is None else config.prime.name,
        "samples": {
            "primed": len(opening),
            "real": [pitches_of(roll[: config.sample_frames])] * config.samples,
            "sampled": [pitches_of(shift_keys(one, -shift)) for one in sampled],
        },
    }
    said = f"the opening was transposed by {shift} semitones for the network, and its samples back"
    return Result(data, [], said if shift else "")


def _transpose(network: Layer, params: Params, roll: np.ndarray) -> tuple[np.ndarray, int]:
    """The roll in the key, at most six semitones away, in which the network expects it most, and
    the semitones that it was raised by; unchanged if it has one frame."""
    shifts = [s for s in range(-5, 7) if shift_keys(roll, s).sum() == roll.sum()]
    if len(roll) < 2:
        return roll, 0
    rolls = jnp.asarray(np.stack([shift_keys(roll, shift) for shift in shifts], axis=1))
    nats = [
        float(
            score_batch(network, params, (rolls[:, [place]], jnp.ones((len(roll), 1), bool)), None)
        )
        for place in range(len(shifts))
    ]
    shift = shifts[int(np.argmin(nats))]
    return shift_keys(roll, shift), shift


def _read(config: Config, tick: Tick) -> PianoRolls:
    return load_chorales(tick) if config.data is None else read_mat(config.data)


# Training


def _make_task(config: Config, pieces: Pieces, network: Layer) -> tuple[Task, TrainState]:
    def loss_fn(params: Params, batch: Any, key: Key) -> tuple[Array, dict[str, Array]]:
        key_weights, key_units = jax.random.split(key)
        dropped = drop_connect(params, config.drop_connect, key_weights)
        return score_batch(network, dropped, batch, key_units), {}

    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(100, config.steps // 10), config.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay)
    )
    batch = (config.batch_size, config.window)
    return _start(config, pieces, network, "network", loss_fn, optimizer, batch)


def _make_plain_task(config: Config, pieces: Pieces, network: Layer) -> tuple[Task, TrainState]:
    def loss_fn(params: Params, batch: Any, key: Key) -> tuple[Array, dict[str, Array]]:
        del key
        return score_batch(network, params, batch, None), {}

    optimizer = optax.adam(config.plain_learning_rate)
    batch = (config.plain_batch_size, pieces.train.shape[0])
    return _start(config, pieces, network, "plain", loss_fn, optimizer, batch)


def _start(
    config: Config,
    pieces: Pieces,
    network: Layer,
    name: str,
    loss_fn: Any,
    optimizer: optax.GradientTransformation,
    batch: tuple[int, int],
) -> tuple[Task, TrainState]:
    """A task with batches of (pieces, frames), and the state that training starts from."""

    def make_batch(key: Key, step: Array) -> tuple[Array, Array]:
        del step
        return draw_batch(key, pieces, *batch)

    def validate(params: Params) -> Array:
        return score_pieces(network, params, pieces.valid)

    def count_scored(part: Any) -> Array:
        return jnp.sum(part[1][1:])

    step = make_train_step(loss_fn, optimizer)
    task = Task(name, step, make_batch, validate, pieces, batch[0], weight_fn=count_scored)
    return task, start_networks(network, optimizer, config)


# Samples


def _sample_all(config: Config, rolls: PianoRolls, network: Layer, params: Params) -> Data:
    """Test pieces, and the network's continuations of their openings."""
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


# The table


def _judge(data: Data) -> list[Finding]:
    test = data["test"]
    ours, plain = float(np.mean(test["network"])), float(np.mean(test["plain"]))
    return [
        Finding(
            "single",
            f"A carefully trained network predicts {data['name']} better than a plain one.",
            f"its mean test NLL is at least {_GAIN:.0%} lower",
            f"{describe_seeds(test['network'])} against {describe_seeds(test['plain'])} nats per "
            f"frame: {1 - ours / plain:.1%} lower",
            ours <= (1 - _GAIN) * plain,
        ),
        Finding(
            "ensemble",
            "The mean of the networks' probabilities predicts better than each network alone.",
            "its test NLL is below the networks' mean test NLL",
            f"{test['ensemble']:.3f} nats per frame, {1 - test['ensemble'] / plain:.1%} below "
            f"plain; ensemble of plain networks {test['plain ensemble']:.3f}",
            test["ensemble"] < ours,
        ),
        Finding(
            "simple",
            "It predicts better than models without a network.",
            "its mean test NLL is below those of each key's frequency and of its frequency given "
            "the same key in the frame before (Markov)",
            f"{test['marginal']:.3f} by frequencies, {test['Markov']:.3f} by Markov",
            ours < min(test["marginal"], test["Markov"]),
        ),
    ]
