"""Measures what a plan promised: latency here, loss on held-out calls.

In: an executor and calls. Out: nanoseconds with spread; the additive loss.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from adaflex.passes.calibration import Inputs, Samples
from adaflex.passes.capture import Capture, Weights
from adaflex.passes.losses import Judge, Loss
from adaflex.runtime.execute import Executor

SHORTEST_S = 0.1  # of one burst
BURSTS = 5
COLD_CALLS = 5


def latency(call: Callable[[], Any], bursts: int = BURSTS) -> tuple[int, float]:
    """Median nanoseconds of a call over the calmest bursts, and the relative spread of the bursts' medians."""
    call()
    start = time.perf_counter_ns()
    call()
    once = max(time.perf_counter_ns() - start, 1)
    count = max(1, min(200, int(SHORTEST_S * 1e9 / once)))
    medians = []
    for _ in range(bursts):
        samples = []
        for _ in range(count):
            start = time.perf_counter_ns()
            call()
            samples.append(time.perf_counter_ns() - start)
        medians.append(statistics.median(samples))
    ordered = sorted(medians)
    calm = ordered[: (len(ordered) + 1) // 2]  # another process only ever makes a burst longer
    middle = statistics.median(calm)
    return int(middle), (ordered[-1] - ordered[0]) / middle


def latency_of(runs: Executor, inputs: Inputs) -> tuple[int, float]:
    """The same for a program, its inputs lying where it runs."""
    given = runs.ready(inputs)

    def call() -> None:
        runs(*given)
        runs.wait()

    return latency(call)


def stall(executor: Executor, call: Callable[[], Any]) -> int:
    """Median nanoseconds that a call waits for the disk while nothing is in the page cache."""
    staging = executor.staging
    assert staging is not None
    call()
    waits = []
    for _ in range(COLD_CALLS):
        staging.stream.drop_cache()
        before = staging.waited_ns
        call()
        waits.append(staging.waited_ns - before)
    return int(statistics.median(waits))


def loss_of(
    executor: Executor, capture: Capture, weights: Weights, data: Samples, calls: Sequence[Inputs], kind: Loss
) -> float:
    """The additive loss of a program over calls, against the original graph."""
    judge = Judge(capture, data, calls, kind)
    with torch.no_grad():
        judge.start([capture.run(weights, inputs) for inputs in calls])
    places = [place for place, output in enumerate(capture.outputs) if output.dtype is not None]

    def run(number: int) -> list[Any]:
        found: list[Any] = [None] * len(capture.outputs)
        for place, value in zip(places, executor(*calls[number]), strict=True):
            found[place] = value
        return found

    return judge(run)
