"""Polyphonic music: which of 88 keys sound in the next frame of a piano roll.

Claim: on held-out pieces, a carefully trained vanilla network predicts at least 4 % better than a
plainly trained layer of 150 units; an ensemble of such networks predicts better still; and both
predict better than models without a network. A second vanilla network that runs over the keys of
each frame predicts far better than any of them, and writes chords. Refuted by the negative
log-likelihood per frame, in nats, summed over the 88 keys: frame t + 1 is predicted from the frames
up to t, and the mean is over all frames of all pieces but the first of each. Source:
Boulanger-Lewandowski, Bengio & Vincent 2012, "Modeling temporal dependencies in high-dimensional
sequences" (which scores first frames, too).

By default the pieces are the chorales by Bach that music21 includes (experiments/data/
piano_rolls.py says how they are split and transposed). `--data FILE.mat` reads the field's standard
files. Early stopping and every choice use the validation pieces only.

The plain network is `torch.nn.RNN` with a dense readout, started with torch's uniform weights and
trained by Adam with early stopping. The other adds: dropped recurrent weights, one pattern per
training step (DropConnect; Merity et al. 2018, "Regularizing and optimizing LSTM language models"),
dropout before every layer, weight decay, a learning rate schedule, a hidden layer in the readout,
and weights that keys share: the network also reads how many keys of each of the 12 pitch classes
sound, can raise or lower all keys of a class together, and computes every key's logit by the same
small network, which sees the keys around it. An ensemble averages probabilities. The network over
keys is described in `experiments.music.joint`; its figures are printed with and without the first
frame of each piece.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
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
)
from experiments.music.findings import judge
from experiments.music.joint import (
    JointNetwork,
    JointParams,
    begin_with_silence,
    joint_network,
    score_joint_batch,
    score_joint_networks,
    score_joint_pieces,
)
from experiments.music.networks import plain_network, sample, sharing_network
from experiments.music.pieces import Pieces, arrange_pieces, draw_batch, measure_growth
from experiments.music.sampling import continue_roll, sample_continuations
from experiments.music.scoring import score_batch, score_models, score_pieces
from experiments.shared.findings import Data, Result
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
    Trained,
    choose_best,
    record,
    start_networks,
    train,
)
from jaxrnn import Array, Key, Layer, Params, TrainState, make_train_step
from jaxrnn.constraints import drop_connect

_COUNTED = 32  # samples whose notes are counted


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
    keys_size: Positive = 48
    """Hidden units of the network that runs over the keys of a frame."""
    drop_connect: Fraction = 0.5
    """Share of the recurrent weights that each training step drops, with up to 12,500 frames to
    train on; it falls as their number grows beyond."""
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
    """Pieces per training step; half as many for the network over keys."""
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
    """Maximum number of training steps with up to 12,500 frames to train on; it grows as the square
    root of their number. Validation may stop a network earlier."""
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
    """Train the networks of each kind, score them and draw samples."""
    if config.sample_frames <= config.primed:
        raise InputError(
            f"--sample-frames is {config.sample_frames}, expected more than --primed "
            f"{config.primed}"
        )
    import_extra("mido")  # fails now, not after the training
    sizes = config.hidden_size, config.layers, config.dropout, config.input_dropout
    joint = joint_network(*sizes, config.keys_size)
    if config.source is not None:
        return _use(config, config.source, joint)
    if config.prime is not None:
        raise InputError("--prime is what networks continue that --from names")
    reading = within(progress, 0.0, 0.05, "data")
    rolls = load_chorales(reading) if config.data is None else read_mat(config.data)
    pieces, silent = arrange_pieces(rolls), arrange_pieces(begin_with_silence(rolls))
    network, plain = sharing_network(*sizes), plain_network()
    task, start = _make_task(config, pieces, network)
    steps = round(config.steps * math.sqrt(measure_growth(pieces)))
    part = within(progress, 0.05, 0.3, "network")
    trained = train(task, start, config, part, steps=steps)
    task, start = _make_plain_task(config, pieces, plain)
    part = within(progress, 0.3, 0.4, "plain network")
    plainly = train(task, start, config, part, steps=config.plain_steps)
    task, start = _make_joint_task(config, silent, joint)
    part = within(progress, 0.4, 0.95, "network over keys")
    jointly = train(task, start, config, part, steps=steps)
    _keep(config, rolls, (network, trained), (plain, plainly), (joint, jointly))
    progress(0.95, "scoring and sampling")
    test = score_models(rolls, pieces.test, (network, trained.params), (plain, plainly.params))
    test["joint"], test["joint ensemble"] = score_joint_networks(joint, jointly.params, silent.test)
    data: Data = {
        "name": rolls.name,
        "pieces": {split: len(getattr(rolls, split)) for split in ("train", "valid", "test")},
        "networks": {
            "network": record(trained),
            "plain": record(plainly),
            "joint": record(jointly),
        },
        "test": test,
        **_sample(config, rolls, (network, choose_best(trained)), (joint, choose_best(jointly))),
    }
    return Result(data, judge(data))


def _keep(
    config: Config,
    rolls: PianoRolls,
    network: tuple[Layer, Trained],
    plain: tuple[Layer, Trained],
    joint: tuple[JointNetwork, Trained],
) -> None:
    kept = {
        name: (layer, result.params, result.validation)
        for name, (layer, result) in (("network", network), ("plain", plain))
    }
    layers, jointly = joint
    for part, layer in layers._asdict().items():
        kept[f"joint-{part}"] = layer, getattr(jointly.params, part), jointly.validation
    opening = pitches_of(rolls.test[0][: config.primed])
    save_networks(config, "music", RollInputs(KEYS, LOWEST, opening), kept)


def _sample(
    config: Config,
    rolls: PianoRolls,
    network: tuple[Layer, Params],
    joint: tuple[JointNetwork, Params],
) -> Data:
    """Continuations of test pieces, and the mean number of notes of a frame."""
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    sizes = config.samples, config.primed, config.sample_frames
    samples, _ = sample_continuations(*joint, rolls, *sizes, key)
    many = max(config.samples, _COUNTED), config.primed, config.sample_frames
    _, drawn = sample_continuations(*joint, rolls, *many, key)
    opening = jnp.zeros((1, many[0], KEYS), jnp.uint8)
    apart = sample(network[0], config.sample_frames, network[1], opening, key)
    return {
        "samples": samples,
        "notes": {
            "pieces": float(np.concatenate(rolls.test).sum(axis=1).mean()),
            "sampled": float(np.asarray(drawn, np.float64).sum(axis=-1).mean()),
            "independent": float(np.asarray(apart, np.float64).sum(axis=-1).mean()),
        },
    }


def _use(config: Config, source: Path, network: JointNetwork) -> Result:
    """Continue a MIDI file, or else an opening of a test piece, with networks of another run."""
    inputs = read_inputs(source, RollInputs)
    pitches = {pitch for sounding in inputs.opening for pitch in sounding}
    if (inputs.keys, inputs.lowest) != (KEYS, LOWEST) or pitches - set(
        range(LOWEST, LOWEST + KEYS)
    ):
        raise InputError(f"{source}: the networks read other keys than {KEYS} from {LOWEST} up")
    params = JointParams(
        *(
            jax.tree.map(lambda leaf: leaf[0], load_networks(source, f"joint-{part}", layer))
            for part, layer in network._asdict().items()
        )
    )
    roll = roll_of(inputs.opening) if config.prime is None else read_midi(config.prime)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    sizes = config.samples, config.primed, config.sample_frames
    samples, shift = continue_roll(network, params, roll, *sizes, key)
    name = "samples" if config.prime is None else config.prime.name
    said = f"the opening was raised by {shift} semitones for the network, and its samples back"
    return Result({"name": name, "samples": samples}, [], said if shift else "")


# Training


def _make_task(config: Config, pieces: Pieces, network: Layer) -> tuple[Task, TrainState]:
    def loss_fn(params: Params, batch: Any, key: Key) -> tuple[Array, dict[str, Array]]:
        key_weights, key_units = jax.random.split(key)
        layers = dropped.apply(params[0], key=key_weights)
        return score_batch(network, (layers, params[1]), batch, key_units), {}

    dropped = drop_connect(config.drop_connect / measure_growth(pieces))
    batch = (config.batch_size, config.window)
    validate = functools.partial(score_pieces, network, pieces=pieces.valid)
    optimizer = _adamw(config, pieces)
    return _start(config, pieces, network, "network", loss_fn, validate, optimizer, batch)


def _make_joint_task(
    config: Config, pieces: Pieces, network: JointNetwork
) -> tuple[Task, TrainState]:
    def loss_fn(params: Params, batch: Any, key: Key) -> tuple[Array, dict[str, Array]]:
        key_weights, key_units = jax.random.split(key)
        layers = dropped.apply(params.channels, key=key_weights)
        return score_joint_batch(network, params._replace(channels=layers), batch, key_units), {}

    dropped = drop_connect(config.drop_connect / measure_growth(pieces))

    def validate(params: Params) -> Array:
        return score_joint_pieces(network, params, pieces.valid)[1]

    batch = max(config.batch_size // 2, 1), config.window  # a frame is 88 steps
    optimizer = _adamw(config, pieces)
    return _start(config, pieces, network, "joint", loss_fn, validate, optimizer, batch)


def _adamw(config: Config, pieces: Pieces) -> optax.GradientTransformation:
    steps = round(config.steps * math.sqrt(measure_growth(pieces)))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(100, steps // 10), steps
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay)
    )


def _make_plain_task(config: Config, pieces: Pieces, network: Layer) -> tuple[Task, TrainState]:
    def loss_fn(params: Params, batch: Any, key: Key) -> tuple[Array, dict[str, Array]]:
        del key
        return score_batch(network, params, batch, None), {}

    optimizer = optax.adam(config.plain_learning_rate)
    batch = (config.plain_batch_size, pieces.train.shape[0])
    validate = functools.partial(score_pieces, network, pieces=pieces.valid)
    return _start(config, pieces, network, "plain", loss_fn, validate, optimizer, batch)


def _start(
    config: Config,
    pieces: Pieces,
    network: Layer | JointNetwork,
    name: str,
    loss_fn: Any,
    validate: Callable[[Params], Array],
    optimizer: optax.GradientTransformation,
    batch: tuple[int, int],
) -> tuple[Task, TrainState]:
    """A task with batches of (pieces, frames), and the state that training starts from."""

    def make_batch(key: Key, step: Array) -> tuple[Array, Array]:
        del step
        return draw_batch(key, pieces, *batch)

    def count_scored(part: Any) -> Array:
        return jnp.sum(part[1][1:])

    step = make_train_step(loss_fn, optimizer)
    task = Task(name, step, make_batch, validate, pieces, batch[0], weight_fn=count_scored)
    return task, start_networks(network, optimizer, config)
