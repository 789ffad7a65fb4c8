"""The clock of the experiments, read against one that the tests turn."""

import pytest

from experiments.shared import timing


class Clock:
    """Seconds that pass only in calls, and in outputs that are waited for."""

    def __init__(self):
        self.now = 0.0

    def make_call(self, *seconds, until_ready=0.0):
        """A call that takes each of `seconds` in turn; its output is ready later."""
        durations = iter(seconds)

        def call():
            self.now += next(durations)
            return Output(self, until_ready)

        return call


class Output:
    def __init__(self, clock, until_ready):
        self.clock, self.until_ready = clock, until_ready

    def block_until_ready(self):
        self.clock.now += self.until_ready
        return self


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_a_call_is_timed_until_its_output_is_ready(clock):
    assert timing.time_once(clock.make_call(1.0, until_ready=4.0)) == 5.0


def test_calls_in_turn_are_timed_by_the_median_after_a_round_that_does_not_count(clock):
    first = clock.make_call(100.0, 1.0, 9.0, 2.0)
    second = clock.make_call(100.0, 3.0, 3.0, 50.0, until_ready=0.5)
    assert timing.time_in_turn(first, second, repeats=3) == [2.0, 3.5]


def test_calls_are_interleaved(clock):
    order = []
    timing.time_in_turn(lambda: order.append("a"), lambda: order.append("b"), repeats=2)
    assert order == ["a", "b"] * 3
