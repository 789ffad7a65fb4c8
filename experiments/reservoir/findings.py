"""The findings of `reservoir`."""

from __future__ import annotations

import numpy as np

from experiments.shared.findings import Data, Finding, describe_seeds


def judge(data: Data) -> list[Finding]:
    """One finding of each task, and one of the memory."""
    tasks = data["tasks"]
    findings = [_judge_mackey(tasks[name], name) for name in tasks if name.startswith("mackey")]
    return [*findings, _judge_narma(tasks["narma"]), _judge_lorenz(tasks["lorenz"]), _memory(data)]


def _judge_mackey(task: Data, name: str) -> Finding:
    rmse = np.asarray(task["rmse"])
    return Finding(
        name,
        f"{task['units']} units predict the series one step ahead (delay {name.split()[1]}).",
        "the root mean square error on the test rows is at most 0.0020 in the median seed",
        f"{np.median(rmse):.2g} (NRMSE {np.median(task['nrmse']):.2g}), seeds {rmse.min():.2g} to "
        f"{rmse.max():.2g}; run free, the NRMSE of step 84 is {np.median(task['ahead']):.2g}, and "
        f"{np.median(task['valid']):.0f} steps are right in the median",
        float(np.median(rmse)) <= 0.0020,
    )


def _judge_narma(task: Data) -> Finding:
    nrmse = np.asarray(task["nrmse"])
    return Finding(
        "narma",
        f"{task['units']} units follow NARMA-10.",
        "the NRMSE on the test rows is at most 0.20 in the median seed, and below that of a linear "
        "readout of the last 20 inputs",
        f"{describe_seeds(nrmse)}; linear readout {task['delay_line']:.3f}",
        float(np.median(nrmse)) <= min(0.20, task["delay_line"]),
    )


def _judge_lorenz(task: Data) -> Finding:
    valid = np.asarray(task["valid"])
    by_seed = np.median(valid, axis=1)
    return Finding(
        "lorenz",
        f"{task['units']} units, run free, forecast Lorenz-63.",
        "the median valid time on the test rows is at least 8 Lyapunov times",
        f"{np.median(valid):.1f} Lyapunov times, seeds {by_seed.min():.1f} to {by_seed.max():.1f}",
        float(np.median(valid)) >= 8,
    )


def _memory(data: Data) -> Finding:
    memory = data["memory"]
    capacity, radii = np.asarray(memory["capacity"]), np.asarray(memory["radii"])
    leaks = np.asarray(memory["leaks"])
    best = np.unravel_index(np.nanargmax(capacity), capacity.shape)
    return Finding(
        "memory",
        "The memory of inputs is longest near a spectral radius of 1 and without a leak.",
        "the largest capacity is at a radius of 0.8 to 1.1 and the largest leak a",
        f"{capacity[best]:.1f} steps with {memory['units']} units at radius {radii[best[0]]:g}, "
        f"a = {leaks[best[1]]:g}; at radius {radii[0]:g} {capacity[0].max():.1f}, at radius "
        f"{radii[-1]:g} {capacity[-1].max():.1f}",
        bool(0.8 <= radii[best[0]] <= 1.1 and best[1] == int(leaks.argmax())),
    )
