"""The next frame and the closed loop, recomputed step by step in NumPy on untrained networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import movies
from experiments.data.bouncing_balls import PIXELS, render
from experiments.shared.options import InputError, check_config

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

CONFIG = movies.Config(
    hidden_size=4,
    layers=2,
    videos=3,
    test_videos=2,
    frames=23,
    batch_size=2,
    # Adam moves an entry by about its rate: every network stays what it was at the start.
    learning_rate=1e-20,
    steps=1,
    eval_every=1,
    seeds=2,
    devices=1,
)
SEEN = 20  # frames that a network sees before it continues alone


def to_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def select(params, place):
    return jax.tree.map(lambda leaf: leaf[place], params)


def show(params, states, frame):
    """The states [B, H] of all layers after one more frame [B, PIXELS], and the next frame."""
    *layers, (w, b) = params
    after, below = [], frame
    for layer, h in zip(layers, states, strict=True):
        below = np.tanh(h @ layer.w_hh.T + below @ layer.w_ih.T + layer.b)
        after.append(below)
    return after, 1 / (1 + np.exp(-(below @ w.T + b)))


def predict(params, frames, seen):
    """The frames after the first [T - 1, B, PIXELS] as the network predicts them, each from the
    frames before it, of which only the first `seen` are shown and the rest are predictions."""
    params, frames = to_float64((params, frames))
    states = [np.zeros((frames.shape[1], layer.b.size)) for layer in params[:-1]]
    predicted = []
    for t in range(len(frames) - 1):
        frame = frames[t] if t < seen else predicted[-1]
        states, following = show(params, states, frame)
        predicted.append(following)
    return np.stack(predicted)


def compute_errors(predicted, frames):
    """The mean over videos of the squared error of each frame."""
    pixels = (predicted - to_float64(frames)) ** 2
    return pixels.sum(axis=-1).mean(axis=-1)


@functools.cache
def draw():
    """A network, the parameters of two, and the test videos."""
    network = movies._network(CONFIG)
    params = jax.jit(jax.vmap(network.init))(jax.random.split(jax.random.key(1), 2))
    return network, params, render(movies._draw(CONFIG, "test", CONFIG.test_videos))


def test_the_error_of_the_next_frame_is_that_of_stepping_by_hand():
    network, params, frames = draw()
    got = movies._measure(network, params, frames)
    for place in range(2):
        predicted = predict(select(params, place), frames, seen=len(frames))
        np.testing.assert_allclose(got[place], compute_errors(predicted, frames[1:]), rtol=1e-4)


def test_alone_a_network_sees_twenty_frames_and_then_its_own_predictions():
    network, params, frames = draw()
    got = movies._measure_alone(network, params, frames)
    assert got.shape == (2, len(frames) - SEEN)
    for place in range(2):
        predicted = predict(select(params, place), frames, SEEN)[SEEN - 1 :]
        np.testing.assert_allclose(got[place], compute_errors(predicted, frames[SEEN:]), rtol=1e-4)
    shown = movies._measure(network, params, frames)[:, SEEN - 1 :]
    assert (got[:, 1:] != shown[:, 1:]).all()  # the two can be told apart


def test_the_baselines_are_the_last_frame_and_the_clipped_extrapolation_of_two():
    frames = np.random.default_rng(0).random((5, 2, 6)).astype(np.float32)
    got = movies._measure_baselines(jnp.asarray(frames))
    last, linear = [], []
    for video in range(2):
        for t in range(1, 5):
            last.append(sum((frames[t, video] - frames[t - 1, video]) ** 2))
        for t in range(2, 5):
            moved = 2 * frames[t - 1, video] - frames[t - 2, video]
            assert moved.min() < 0 or moved.max() > 1
            linear.append(sum((frames[t, video] - np.clip(moved, 0, 1)) ** 2))
    assert got == pytest.approx(
        {"last frame": np.mean(last), "linear extrapolation": np.mean(linear)}, rel=1e-5
    )


def test_the_film_shows_the_truth_the_next_frame_and_the_network_alone():
    network, params, frames = draw()
    film = movies._film(network, select(params, 0), frames)
    first = frames[:, :1]
    expected = {
        "truth": np.asarray(first),
        "one step ahead": predict(select(params, 0), first, len(frames)),
        "alone": predict(select(params, 0), first, SEEN),
    }
    assert film.keys() == expected.keys()
    for name, shown in expected.items():
        whole = shown if name == "truth" else np.concatenate([first[:1], shown])
        assert film[name].dtype == np.uint8
        difference = film[name].reshape(len(frames), PIXELS) - 255 * whole[:, 0]
        assert np.abs(difference).max() < 0.51  # half a grey level


def test_no_two_uses_share_a_video():
    tracks = [np.asarray(movies._draw(CONFIG, use, 2)) for use in ("train", "fixed", "test")]
    tracks.append(np.asarray(movies._draw(CONFIG, "validation", 2)))
    starts = np.concatenate([track[0] for track in tracks]).reshape(8, -1)
    assert len(np.unique(starts, axis=0)) == 8


def test_fixed_training_repeats_its_videos_and_fresh_training_does_not(key):
    network = movies._network(CONFIG)
    videos = np.asarray(render(movies._draw(CONFIG, "fixed", CONFIG.videos)))
    for name in ("fixed", "fresh"):
        task, _ = movies._make_task(CONFIG, network, name)
        frames, following, begins = map(np.asarray, jax.jit(task.make_batch)(key, 0))
        np.testing.assert_array_equal(frames[1:], following[:-1])
        assert np.flatnonzero(begins).tolist() == [0]
        known = [
            any(np.allclose(frames[:, row], videos[:-1, one]) for one in range(CONFIG.videos))
            for row in range(CONFIG.batch_size)
        ]
        assert known == [name == "fixed"] * CONFIG.batch_size


def test_training_carries_the_state_through_a_video_and_starts_it_afresh(key):
    # What the state was before the video plays no part.
    task, states = movies._make_task(CONFIG, movies._network(CONFIG), "fresh")
    state = select(states, 0)
    state = state._replace(carry=jax.tree.map(jnp.ones_like, state.carry))
    batch = jax.jit(task.make_batch)(key, 0)
    _, metrics = jax.jit(task.train_step)(state, batch)
    video = jnp.concatenate([batch[0], batch[1][-1:]])
    errors = compute_errors(predict(state.params, video, len(video)), video[1:])
    windows = [errors[:11].mean(), errors[11:].mean()]
    np.testing.assert_allclose(metrics["loss"], windows, rtol=1e-4)


def test_a_run_reports_the_errors_of_both_networks_on_the_test_videos():
    data = movies.run(CONFIG, lambda done, doing: None).data
    network = movies._network(CONFIG)
    frames = render(movies._draw(CONFIG, "test", CONFIG.test_videos))
    validation = render(movies._draw(CONFIG, "validation", CONFIG.test_videos))
    assert data["alone_from"] == SEEN
    assert data["baselines"] == movies._measure_baselines(frames)
    for name in ("fresh", "fixed"):
        params = movies._make_task(CONFIG, network, name)[1].params
        reported = data["networks"][name]
        for place in range(CONFIG.seeds):
            one = select(params, place)
            expected = {
                "parts": compute_errors(predict(one, frames, len(frames)), frames[1:]),
                "alone": compute_errors(predict(one, frames, SEEN)[SEEN - 1 :], frames[SEEN:]),
                "validation": compute_errors(
                    predict(one, validation, len(frames)), validation[1:]
                ).mean(),
            }
            for what, values in expected.items():
                np.testing.assert_allclose(reported[what][place], values, rtol=1e-4, err_msg=what)


@pytest.mark.parametrize(
    ("fresh", "fixed", "refuted"),
    [
        ([0.5, 1.4], [1.4, 1.5], set()),
        ([0.5, 1.6], [1.4, 1.5], {"fresh"}),
        ([0.5, 1.4], [1.4, 1.7], {"fixed"}),
    ],
)
def test_a_finding_is_refuted_by_a_mean_error_of_its_own_network_above_its_target(
    fresh, fixed, refuted
):
    networks = {
        name: {"parts": np.outer(errors, [0.5, 1.5]), "validation": errors}
        for name, errors in {"fresh": fresh, "fixed": fixed}.items()
    }
    data = {"networks": networks, "baselines": {"last frame": 11.8}}
    findings = movies._judge(data)
    assert {finding.name for finding in findings if not finding.holds} == refuted


def test_fewer_frames_than_the_closed_loop_needs_are_refused_by_name():
    with pytest.raises(InputError, match="--frames is 21"):
        check_config(dataclasses.replace(CONFIG, frames=21))
