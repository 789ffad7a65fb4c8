"""The figure of `music` is the one that is published, and its networks are layers as any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.piano_rolls import KEYS, PianoRolls
from experiments.music.networks import drop_connect, plain_network, sharing_network
from experiments.music.pieces import arrange_pieces, draw_batch, pack_pieces
from experiments.music.scoring import score_markov, score_pieces

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")


def draw_rolls(seed=0, lengths=(7, 2, 12, 5)):
    rng = np.random.default_rng(seed)
    return [(rng.random((frames, KEYS)) < 0.1).astype(np.uint8) for frames in lengths]


NETWORKS = {"plain": plain_network(), "sharing": sharing_network(6, 2, 0.0, 0.0)}


def init(network):
    """Parameters of which none is zero."""
    params = network.init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_figure_is_the_loss_of_all_frames_but_the_first_of_every_piece_pooled(name):
    network, rolls = NETWORKS[name], draw_rolls()
    params = init(network)
    pieces = pack_pieces(rolls)
    got = score_pieces(network, params, pieces)

    total, frames = 0.0, 0
    for roll in rolls:
        logits = np.asarray(network.unroll(params, None, jnp.asarray(roll[:-1]))[1], np.float64)
        p = 1 / (1 + np.exp(-logits))
        total -= np.sum(np.log(np.where(roll[1:] == 1, p, 1 - p)))
        frames += len(roll) - 1
    assert frames == int(pieces.scored.sum()) == 22
    assert float(got) == pytest.approx(total / frames, rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_stepping_through_a_piece_is_unrolling_it(name):
    network, roll = NETWORKS[name], jnp.asarray(draw_rolls()[0])
    params = init(network)
    state = network.initial_state(params)
    expected = network.unroll(params, None, roll)[1]
    for frame, logits in zip(roll, expected, strict=True):
        state, got = network.step(params, state, frame)
        np.testing.assert_allclose(got, logits, rtol=1e-5, atol=1e-5)


def test_the_readout_moves_with_the_keys_where_the_network_says_nothing():
    """What keys share sees only what sounds around each key."""
    network = NETWORKS["sharing"]
    layers, shared = init(network)
    silent = (jax.tree.map(jnp.zeros_like, layers), shared)
    roll = np.zeros((3, KEYS), np.uint8)
    roll[0, [30, 34, 37]] = roll[1, [32, 35]] = roll[2, 40] = 1
    one, other = (
        np.asarray(network.unroll(silent, None, jnp.asarray(np.roll(roll, shift, axis=1)))[1])
        for shift in (0, 5)
    )
    np.testing.assert_allclose(one[:, 15:60], other[:, 20:65], atol=1e-6)
    assert np.ptp(one) > 0.01


def test_dropped_recurrent_weights_are_zero_and_the_others_keep_their_mean():
    params = sharing_network(100, 1, 0.0, 0.0).init(jax.random.key(0))
    dropped = drop_connect(params, 0.25, jax.random.key(1))
    changed = [
        (got, expected)
        for got, expected in zip(jax.tree.leaves(dropped), jax.tree.leaves(params), strict=True)
        if not np.array_equal(got, expected)
    ]
    ((got, expected),) = changed  # the recurrent matrix alone
    assert got.shape == (100, 100)
    kept = np.asarray(got) != 0
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 1e4)
    np.testing.assert_allclose(got[kept], expected[kept] / 0.75, rtol=1e-6)


def test_a_batch_holds_stretches_of_pieces_and_marks_what_lies_behind_them():
    rolls = draw_rolls(lengths=(30, 4, 9))
    pieces = arrange_pieces(PianoRolls("made", rolls, rolls, rolls))
    frames, mask = draw_batch(jax.random.key(0), pieces, 50, 8)
    assert frames.shape == (9, 50, KEYS)
    found = set()
    for frame, marks in zip(np.asarray(frames).swapaxes(0, 1), np.asarray(mask).T, strict=True):
        stretch = frame[marks]
        places = [
            (piece, start)
            for piece, roll in enumerate(rolls)
            for start in range(len(roll) - len(stretch) + 1)
            if np.array_equal(roll[start : start + len(stretch)], stretch)
        ]
        assert len(places) == 1
        found.add(places[0])
        assert len(stretch) == min(9, len(rolls[places[0][0]]))
    assert {piece for piece, _ in found} == {0, 1, 2}
    assert len({start for piece, start in found if piece == 0}) > 5


def test_markov_and_marginal_scores_are_those_of_a_loop_over_keys():
    rolls = PianoRolls("made", draw_rolls(1), draw_rolls(2), draw_rolls(3))
    for condition in (np.zeros_like, lambda before: before):
        total, frames = 0.0, 0
        for key in range(KEYS):
            pairs = [
                (int(condition(a)), int(b))
                for roll in rolls.train
                for a, b in zip(roll[:-1, key], roll[1:, key], strict=True)
            ]
            overall = (sum(b for _, b in pairs) + 0.5) / (len(pairs) + 1)
            p = {
                case: (sum(b for a, b in pairs if a == case) + overall)
                / (sum(a == case for a, _ in pairs) + 1)
                for case in (0, 1)
            }
            for roll in rolls.test:
                for a, b in zip(roll[:-1, key], roll[1:, key], strict=True):
                    total -= np.log(p[int(condition(a))] if b else 1 - p[int(condition(a))])
        frames = sum(len(roll) - 1 for roll in rolls.test)
        assert score_markov(rolls, condition) == pytest.approx(total / frames, rel=1e-10)
