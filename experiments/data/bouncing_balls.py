"""Videos of bouncing balls, drawn on the device: the generator of Sutskever, Hinton & Taylor 2008.

Three balls of radius 1.2 and mass 1 move in a box of 10 x 10. The vector of all velocities is
normal, scaled to norm 0.5; each frame advances by two half steps; collisions with walls and between
balls are elastic. A frame has 30 x 30 pixels, each min(1, sum over the balls of
exp(-((distance / radius)^2)^4)).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import Array, Key

SIDE = 30
PIXELS = SIDE * SIDE
BALLS = 3

_BOX, _RADIUS, _SPEED, _HALF_STEP = 10.0, 1.2, 0.5, 0.5
_PAIRS = tuple((i, j) for i in range(BALLS) for j in range(i))


def draw_tracks(key: Key, num_frames: int, num_videos: int) -> Array:
    """The centres [num_frames, num_videos, BALLS, 2] of the balls."""

    def one(key: Key) -> Array:
        def move(balls: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
            return _half_step(*_half_step(*balls)), balls[0]

        return lax.scan(move, _draw_start(key), length=num_frames)[1]

    return jax.vmap(one, out_axes=1)(jax.random.split(key, num_videos))


def render(centres: Array) -> Array:
    """The frames [*B, PIXELS], row by row, of balls at `centres` [*B, BALLS, 2]."""
    pixels = (jnp.arange(SIDE, dtype=centres.dtype) + 0.5) * (_BOX / SIDE)
    pixels = jnp.expand_dims(pixels, range(centres.ndim))
    squares = ((pixels - centres[..., None]) / _RADIUS) ** 2  # [*B, BALLS, 2, SIDE]
    distances = squares[..., 1, :, None] + squares[..., 0, None, :]  # squared, in radii
    distances = distances * distances
    shapes = jnp.exp(-distances * distances)
    frames = jnp.minimum(jnp.sum(shapes, axis=-3), 1.0)
    return frames.reshape(*frames.shape[:-2], PIXELS)


def _draw_start(key: Key) -> tuple[Array, Array]:
    """Centres and velocities [BALLS, 2], with the balls inside the box and apart.

    As in the original, centres are uniform in [2, 10] and redrawn until they fit.
    """
    key_centres, key_velocities = jax.random.split(key)

    def draw(carry: tuple[Key, Array]) -> tuple[Key, Array]:
        key, part = jax.random.split(carry[0])
        return key, jax.random.uniform(part, (BALLS, 2), minval=2.0, maxval=_BOX)

    def misfit(carry: tuple[Key, Array]) -> Array:
        centres = carry[1]
        outside = jnp.any(centres > _BOX - _RADIUS)
        gaps = [jnp.sum((centres[i] - centres[j]) ** 2) for i, j in _PAIRS]
        return outside | jnp.any(jnp.stack(gaps) < (2 * _RADIUS) ** 2)

    _, centres = lax.while_loop(misfit, draw, draw((key_centres, jnp.zeros((BALLS, 2)))))
    velocities = jax.random.normal(key_velocities, (BALLS, 2))
    return centres, velocities * (_SPEED / jnp.sqrt(jnp.sum(velocities**2)))


def _half_step(centres: Array, velocities: Array) -> tuple[Array, Array]:
    centres = centres + _HALF_STEP * velocities
    speeds = jnp.abs(velocities)
    velocities = jnp.where(centres < _RADIUS, speeds, velocities)
    velocities = jnp.where(centres > _BOX - _RADIUS, -speeds, velocities)
    for i, j in _PAIRS:  # touching balls of equal mass swap their speeds along the line
        line = centres[i] - centres[j]
        distance = jnp.sqrt(jnp.sum(line**2))
        line = line / distance
        exchanged = jnp.dot(line, velocities[j] - velocities[i])
        change = jnp.where(distance < 2 * _RADIUS, exchanged, 0.0) * line
        velocities = velocities.at[i].add(change).at[j].add(-change)
    return centres, velocities
