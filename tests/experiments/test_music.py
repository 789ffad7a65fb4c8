"""The figure of `music` is the one that is published, and its networks are layers as any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.midi import read_midi, write_midi
from experiments.data.piano_rolls import KEYS, PianoRolls, shift_keys
from experiments.music import joint, networks, sampling
from experiments.music.findings import judge
from experiments.music.joint import (
    begin_with_silence,
    joint_network,
    sample_jointly,
    score_joint_batch,
    score_joint_networks,
    score_joint_pieces,
)
from experiments.music.networks import plain_network, sharing_network
from experiments.music.pieces import arrange_pieces, draw_batch, measure_growth, pack_pieces
from experiments.music.sampling import continue_roll
from experiments.music.scoring import score_markov, score_pieces
from experiments.shared.options import InputError

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


def test_a_collection_as_small_as_the_chorales_trains_as_they_do_and_a_larger_one_longer():
    small, large = (
        arrange_pieces(
            PianoRolls("made", [np.zeros((frames, KEYS), np.uint8)], *[draw_rolls()] * 2)
        )
        for frames in (100, 50_000)
    )
    assert measure_growth(small) == 1
    assert measure_growth(large) == 4


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


# A frame's keys one after another


def draw_joint(key=0):
    network = joint_network(6, 1, 0.0, 0.0, 5)
    params = network.init(jax.random.key(key))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return network, jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), params
    )


def few_keys(monkeypatch, count):
    """A piano of a few keys, all of whose frames can be listed."""
    for module in (joint, networks):
        monkeypatch.setattr(module, "KEYS", count)
    classes = np.asarray(np.arange(count)[:, None] % 12 == np.arange(12), np.float32)
    monkeypatch.setattr(networks, "_CLASSES", classes)


def test_the_probabilities_of_all_frames_sum_to_one(monkeypatch):
    few_keys(monkeypatch, 6)
    network, params = draw_joint()
    frames = np.array(list(np.ndindex(*[2] * 6)), np.uint8)  # [64, 6]
    channels = jax.random.normal(jax.random.key(2), (6, joint._CHANNELS))
    channels = jnp.broadcast_to(channels, (64, *channels.shape))
    before = jnp.broadcast_to(jnp.asarray(frames[37]), frames.shape)
    logits = network.score(params, channels, before, jnp.asarray(frames))
    nats = np.asarray(joint._sum_nats(logits, jnp.asarray(frames)), np.float64)
    assert np.exp(-nats).sum() == pytest.approx(1, rel=1e-5)
    independent = np.prod([np.exp(-nats)[frames[:, k] == 1].sum() for k in range(6)])
    assert np.exp(-nats)[-1] != pytest.approx(independent, rel=1e-2)  # all keys sound


def test_frames_are_drawn_as_often_as_their_probability_says(monkeypatch):
    few_keys(monkeypatch, 3)
    network, params = draw_joint()
    count = 20_000
    channels = jax.random.normal(jax.random.key(2), (3, joint._CHANNELS))
    channels = jnp.broadcast_to(channels, (count, *channels.shape))
    before = jnp.broadcast_to(jnp.array([1, 0, 1], jnp.uint8), (count, 3))
    drawn = np.asarray(network.draw(params, channels, before, jax.random.key(3)))
    frames = np.array(list(np.ndindex(2, 2, 2)), np.uint8)
    logits = network.score(params, channels[:8], before[:8], jnp.asarray(frames))
    expected = np.exp(-np.asarray(joint._sum_nats(logits, jnp.asarray(frames)), np.float64))
    got = np.bincount(drawn @ np.array([4, 2, 1]), minlength=8) / count
    np.testing.assert_allclose(got, expected, atol=5 * np.sqrt(expected.max() / count))


def test_a_key_depends_on_the_keys_below_it_alone():
    network, params = draw_joint()
    channels = jnp.zeros((KEYS, joint._CHANNELS))
    frame = jnp.zeros(KEYS, jnp.uint8)
    logits = network.score(params, channels, frame, frame)
    changed = network.score(params, channels, frame, frame.at[40].set(1))
    np.testing.assert_array_equal(changed[:41], logits[:41])
    assert (changed[41:57] != logits[41:57]).all()


def test_the_joint_figures_are_those_of_each_piece_behind_an_empty_frame():
    network, params = draw_joint()
    rolls = draw_rolls()
    silent = begin_with_silence(PianoRolls("drawn", rolls, rolls, rolls))
    pieces = pack_pieces(silent.test)
    whole, after_first = score_joint_pieces(network, params, pieces)
    nats = []
    for roll in rolls:
        xs = jnp.asarray(np.concatenate([np.zeros_like(roll[:1]), roll]))
        channels = network.unroll(params, (xs[:-1], None, None), None)
        logits = network.score(params, channels, xs[:-1], xs[1:])
        p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
        nats.append(-np.log(np.where(roll == 1, p, 1 - p)).sum(axis=1))
    assert float(whole) == pytest.approx(np.concatenate(nats).mean(), rel=1e-5)
    rest = np.concatenate([one[1:] for one in nats])
    assert float(after_first) == pytest.approx(rest.mean(), rel=1e-5)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    singles, ensemble = score_joint_networks(network, several, pieces)
    np.testing.assert_allclose(singles, [[whole, after_first]] * 2, rtol=1e-5)
    np.testing.assert_allclose(ensemble, [whole, after_first], rtol=1e-5)


def test_a_batch_is_scored_as_its_frames_one_by_one():
    network, params = draw_joint()
    rolls = draw_rolls(lengths=(9, 9))
    frames = jnp.asarray(np.stack(rolls, axis=1))
    mask = jnp.ones((9, 2), bool).at[6:, 1].set(False)
    got = score_joint_batch(network, params, (frames, mask), None)
    pieces = pack_pieces([rolls[0], rolls[1][:6]])
    logits = joint._predict(network, params, pieces)
    nats = joint._sum_nats(logits, pieces.following)
    assert float(got) == pytest.approx(float(nats[pieces.scored].mean()), rel=1e-5)


def test_samples_continue_the_opening_and_the_same_key_draws_the_same(key):
    network, params = draw_joint()
    opening = jnp.asarray(np.stack(draw_rolls(lengths=(5, 5)), axis=1))
    one = sample_jointly(network, 4, params, opening, key)
    assert one.shape == (4, 2, KEYS)
    assert set(np.unique(one)) <= {0, 1}
    np.testing.assert_array_equal(one, sample_jointly(network, 4, params, opening, key))
    assert (one != sample_jointly(network, 4, params, opening, jax.random.key(9))).any()


@pytest.mark.parametrize("shift", [-4, 0, 3])
def test_an_opening_in_another_key_is_continued_in_its_own(monkeypatch, shift, key):
    network, params = draw_joint()
    roll = np.zeros((6, KEYS), np.uint8)
    roll[:, [40, 44, 47]] = 1
    asked = []

    def likes_the_key_of_40(network, params, batch, none):
        frames = np.asarray(batch[0])
        return jnp.float32(abs(int(np.flatnonzero(frames[1, 0])[0]) - 40))

    monkeypatch.setattr(sampling, "_score", likes_the_key_of_40)

    def repeat(network, count, params, openings, key):
        asked.append(np.asarray(openings))
        return np.repeat(np.asarray(openings)[-1:], count, axis=0)

    monkeypatch.setattr(sampling, "sample_jointly", repeat)
    moved = shift_keys(roll, shift)
    samples, raised = continue_roll(network, params, moved, 2, 4, 9, key)
    assert raised == -shift
    np.testing.assert_array_equal(asked[0][:, 0], roll[:4])
    assert samples["sampled"] == [[[61 + shift, 65 + shift, 68 + shift]] * 9] * 2


# MIDI


def test_a_roll_written_as_midi_is_read_again(tmp_path):
    pytest.importorskip("mido")
    roll = draw_rolls(lengths=(12,))[0]
    roll[0, 30] = roll[-1, 31] = 1
    write_midi(tmp_path / "roll.mid", roll)
    np.testing.assert_array_equal(read_midi(tmp_path / "roll.mid"), roll)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not MIDI", "is not a MIDI file"),
        (b"MThd\0\0\0\6\0\0\0\1\0\x60", "is not a MIDI file|has no note"),
        (b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0", "has no note"),
    ],
)
def test_a_file_that_is_not_midi_or_has_no_note_is_refused(tmp_path, content, message):
    pytest.importorskip("mido")
    path = tmp_path / "some.mid"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_midi(path)


def make_data(seeds, **changed):
    test = {
        "network": [4.0] * seeds,
        "plain": [5.0] * seeds,
        "ensemble": 3.9,
        "plain ensemble": 4.8,
    }
    test |= {"joint": [[2.1, 2.0]] * seeds, "joint ensemble": [1.9, 1.8]}
    test |= {"marginal": 9.0, "Markov": 7.0} | changed
    notes = {"sampled": 4.0, "pieces": 4.1, "independent": 3.0}
    return {"name": "x", "test": test, "notes": notes}


@pytest.mark.parametrize(
    ("changed", "refuted"),
    [
        ({}, set()),
        ({"plain": [4.1, 4.1]}, {"single"}),
        ({"ensemble": 4.0}, {"ensemble"}),
        ({"joint": [[5.0, 3.5], [3.0, 2.6]]}, {"joint"}),
        ({"Markov": 3.9}, {"simple"}),
    ],
    ids=lambda value: "+".join(sorted(value)) or "none",
)
def test_each_verdict_follows_from_the_scores(changed, refuted):
    found = judge(make_data(2, **changed))
    assert {finding.name for finding in found if not finding.holds} == refuted


def test_one_network_is_no_ensemble():
    names = [finding.name for finding in judge(make_data(1))]
    assert names == ["single", "joint", "notes", "simple"]
