"""The videos are those of a plain simulation, frame by frame and pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.bouncing_balls import BALLS, PIXELS, draw_tracks, render

RADIUS, BOX = 1.2, 10.0
FRAMES, VIDEOS = 100, 20


@pytest.fixture(scope="module")
def tracks():
    return np.asarray(
        jax.jit(draw_tracks, static_argnums=(1, 2))(jax.random.key(0), FRAMES, VIDEOS)
    )


def simulate(x, v):
    """Frames of one video, ball by ball."""
    frames = []
    for _ in range(FRAMES):
        frames.append(x.copy())
        for _ in range(2):
            x = x + 0.5 * v
            for i in range(BALLS):
                for axis in range(2):
                    if x[i, axis] - RADIUS < 0:
                        v[i, axis] = abs(v[i, axis])
                    if x[i, axis] + RADIUS > BOX:
                        v[i, axis] = -abs(v[i, axis])
            for i in range(BALLS):
                for j in range(i):
                    line = x[i] - x[j]
                    if np.linalg.norm(line) < 2 * RADIUS:
                        line /= np.linalg.norm(line)
                        along = line @ v[i], line @ v[j]
                        v[i] += line * (along[1] - along[0])
                        v[j] += line * (along[0] - along[1])
    return np.array(frames)


def test_tracks_are_those_of_a_plain_simulation(tracks):
    compared = 0
    for video in range(VIDEOS):
        start = tracks[0, video]
        first = tracks[1, video] - start
        expected = simulate(start.copy(), first.copy())
        if not np.isclose(np.linalg.norm(first), 0.5):
            continue  # it bounced in the first frame, which then does not tell the velocities
        # Rounding grows at each collision by about the ratio of free path and radius.
        np.testing.assert_allclose(tracks[:, video], expected, atol=1e-6)
        compared += 1
    assert compared > VIDEOS / 2


def test_balls_start_apart_in_the_box_with_a_joint_speed_of_one_half(tracks):
    start, first = tracks[0], tracks[1] - tracks[0]
    assert start.min() >= 2.0
    assert start.max() <= BOX - RADIUS
    for i in range(BALLS):
        for j in range(i):
            assert np.linalg.norm(start[:, i] - start[:, j], axis=-1).min() >= 2 * RADIUS
    speeds = np.linalg.norm(first.reshape(VIDEOS, -1), axis=-1)
    assert np.median(speeds) == pytest.approx(0.5)
    assert speeds.max() <= 0.5 + 1e-12  # a bounce inside the frame shortens the way


def test_pixels_are_the_formula(tracks):
    centres = tracks[7, 3]
    frame = np.zeros((30, 30))
    for row in range(30):
        for column in range(30):
            pixel = np.array([column + 0.5, row + 0.5]) / 3
            squares = np.sum((pixel - centres) ** 2, axis=-1) / RADIUS**2
            frame[row, column] = min(1.0, np.exp(-(squares**4)).sum())
    got = render(jnp.asarray(centres))
    assert got.shape == (PIXELS,)
    np.testing.assert_allclose(got, frame.ravel(), rtol=0, atol=1e-13)


def test_showing_the_last_frame_again_has_the_error_of_the_standard_videos(tracks):
    frames = np.asarray(render(jnp.asarray(tracks)))
    assert np.mean(np.sum(np.diff(frames, axis=0) ** 2, axis=-1)) == pytest.approx(11.8, abs=0.8)
