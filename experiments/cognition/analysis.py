"""What trained networks are looked at for: the variance of their units, and their fixed points."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster.vq import kmeans2

from experiments.cognition.cells import decide_scene
from experiments.cognition.trials import COHERENCES, draw_scenes, make_trials
from experiments.shared.findings import Data
from jaxrnn import Array, Layer, Params
from jaxrnn.diagnostics import distinct_points, fixed_points

_TRIALS = 64
_STARTS = 24
_WAITING = 200  # steps under the same input
_MOST_CLUSTERS = 12
_ACTIVE = 1e-3  # of the largest task variance, below which a unit takes no part


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure_variances(rnn: Layer, tasks: tuple[str, ...], params: Params) -> Array:
    """The task variance [H, tasks]: each unit's variance over noiseless trials of a task, averaged
    over time (Yang et al. 2019, "Methods: task variance")."""
    scenes = draw_scenes(jax.random.key(0), _TRIALS)
    columns = []
    for task in tasks:
        trials = make_trials(task, scenes)
        hs = rnn.unroll(params, None, trials.xs)[1]
        columns.append(jnp.mean(jnp.var(hs, axis=1), axis=0))
    return jnp.stack(columns, axis=1)


def cluster_units(variances: np.ndarray, seed: int) -> Data:
    """Active units in clusters by their normalised task variance, as many as have the largest mean
    silhouette; and the silhouette of the same units with each task's column shuffled."""
    active = variances.max(axis=1) > _ACTIVE * variances.max()
    profiles = variances[active] / variances[active].max(axis=1, keepdims=True)
    labels, silhouette = _cluster(profiles, seed)
    rng = np.random.default_rng(seed)
    shuffled = np.stack([rng.permutation(column) for column in profiles.T], axis=1)
    order = np.lexsort((np.argmax(profiles, axis=1), labels))
    return {
        "profiles": profiles[order],
        "labels": labels[order],
        "silhouette": silhouette,
        "shuffled": _cluster(shuffled, seed)[1],
        "active": int(active.sum()),
    }


def _cluster(profiles: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    best = np.zeros(len(profiles), int), -1.0
    for count in range(2, min(_MOST_CLUSTERS, len(profiles) - 1) + 1):
        labels = kmeans2(profiles, count, iter=50, minit="++", rng=seed)[1]
        score = measure_silhouette(profiles, labels)
        if score > best[1]:
            best = labels, score
    return best


def measure_silhouette(points: np.ndarray, labels: np.ndarray) -> float:
    """The mean silhouette (Rousseeuw 1987): 1 where clusters are tight and far apart."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    names = np.unique(labels)
    if len(names) < 2:
        return -1.0
    values = []
    for place, label in enumerate(labels):
        own = labels == label
        if own.sum() == 1:
            values.append(0.0)
            continue
        inside = distances[place, own].sum() / (own.sum() - 1)
        outside = min(distances[place, labels == name].mean() for name in names if name != label)
        values.append((outside - inside) / max(inside, outside, 1e-12))
    return float(np.mean(values))


def find_points(rnn: Layer, params: Params, task: str) -> Data:
    """Noiseless decisions for one pair of directions, in the plane of their first two principal
    components, and the fixed and slow points near them before and during the stimulus."""
    levels = jnp.asarray([-c for c in COHERENCES[::-1]] + list(COHERENCES))
    scenes = jax.vmap(lambda level: decide_scene(jax.random.key(0), 1, level))(levels)
    scene = jax.tree.map(lambda leaf: leaf[:, 0], scenes)
    scene = scene._replace(angle=jnp.zeros_like(levels), other=jnp.zeros_like(levels))
    trials = make_trials(task, scene)
    hs = np.asarray(jax.jit(rnn.unroll)(params, None, trials.xs)[1])  # [T, B, H]
    flat = hs.reshape(-1, hs.shape[-1])
    mean = flat.mean(axis=0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:2]
    data: Data = {"trajectories": (hs - mean) @ axes.T, "levels": np.asarray(levels)}
    middle = len(levels) // 2
    inputs = {
        "before the stimulus": trials.xs[8, middle],
        "during the stimulus": jnp.mean(trials.xs[30, middle - 1 : middle + 1], axis=0),
    }
    spans = {"before the stimulus": (4, 10), "during the stimulus": (15, 40)}
    for name, x in inputs.items():
        first, last = spans[name]
        now = hs[first:last].reshape(-1, hs.shape[-1])
        chosen = np.linspace(0, len(now) - 1, min(_STARTS, len(now))).round().astype(int)
        still = jnp.broadcast_to(x, (_WAITING, hs.shape[1], x.shape[-1]))
        waited = np.asarray(jax.jit(rnn.unroll)(params, hs[last - 1], still)[0])
        search = jax.jit(functools.partial(fixed_points, rnn, num_steps=60))
        starts = jnp.asarray(np.concatenate([now[chosen], waited]))
        found = distinct_points(search(params, x, starts), radius=0.05)
        states = np.asarray(found.states)
        unstable = np.sum(np.abs(np.asarray(found.eigenvalues)) >= 1, axis=1)
        stable = np.asarray(found.converged) & (unstable == 0)
        data[name] = {
            "places": (states - mean) @ axes.T,
            "unstable": unstable,
            "largest": np.abs(np.asarray(found.eigenvalues))[:, 0],
            "speeds": np.asarray(found.speeds),
            "converged": np.asarray(found.converged),
            "nearest": _measure_distance(hs[last - 1], states[stable]),
            "waited": _measure_distance(waited, states[stable]),
        }
    return data


def _measure_distance(states: np.ndarray, points: np.ndarray) -> float:
    """The mean distance of states to the nearest of points, over the mean norm of the states."""
    if not len(points):
        return float("inf")
    nearest = np.linalg.norm(points[:, None] - states[None], axis=-1).min(axis=0)
    return float(np.mean(nearest) / np.linalg.norm(states, axis=-1).mean())
