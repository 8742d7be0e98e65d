"""Worker threads: meetings, work counters, sleeping and waking, more threads than processors, forks, times."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adaflex.native import build, load

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    source = (HERE / "team_harness.cpp").read_text()
    found = load(build(source, includes=(HERE.parents[1] / "codegen" / "cpp",), name="team"))
    found.team_new.restype = ctypes.c_void_p
    found.team_delete.argtypes = [ctypes.c_void_p]
    for name in ("team_meet", "team_pieces", "team_visits"):
        getattr(found, name).restype = ctypes.c_long
    found.team_meet.argtypes = [ctypes.c_void_p, ctypes.c_long]
    found.team_pieces.argtypes = found.team_visits.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    for name in ("team_run_ns", "team_barrier_ns"):
        getattr(found, name).restype = ctypes.c_double
        getattr(found, name).argtypes = [ctypes.c_void_p, ctypes.c_long]
    return found


@contextmanager
def team(lib: ctypes.CDLL, threads: int) -> Iterator[int]:
    made = lib.team_new(threads)
    try:
        yield made
    finally:
        lib.team_delete(made)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_all_meet_at_every_barrier(lib: ctypes.CDLL, threads: int) -> None:
    with team(lib, threads) as made:
        assert lib.team_meet(made, 2000 if threads <= 2 else 100) == 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_piece_is_taken_once(lib: ctypes.CDLL, threads: int) -> None:
    with team(lib, threads) as made:
        assert lib.team_pieces(made, 100_003, 7) == 0


@pytest.mark.parametrize("pause_us", [0, 30, 2000])
def test_every_thread_runs_every_time_hot_and_asleep(lib: ctypes.CDLL, pause_us: int) -> None:
    with team(lib, 3) as made:
        assert lib.team_visits(made, 50, pause_us) == 0


def test_several_teams_and_callers(lib: ctypes.CDLL) -> None:
    faults: list[int] = []

    def use(made: int) -> None:
        faults.extend(lib.team_meet(made, 20) for _ in range(10))

    with team(lib, 2) as one, team(lib, 3) as two:
        callers = [threading.Thread(target=use, args=(made,)) for made in (one, one, two)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert faults == [0] * 30


def test_threads_start_late_end_with_the_team_and_sleep_when_idle(lib: ctypes.CDLL) -> None:
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("no /proc here")
    before = len(list(tasks.iterdir()))
    with team(lib, 4) as made:
        assert len(list(tasks.iterdir())) == before
        lib.team_visits(made, 1, 0)
        assert len(list(tasks.iterdir())) == before + 3
        time.sleep(0.02)
        used = time.process_time()
        time.sleep(0.1)
        assert time.process_time() - used < 0.05
    assert len(list(tasks.iterdir())) == before


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads(lib: ctypes.CDLL) -> None:
    with team(lib, 2) as made:
        assert lib.team_visits(made, 3, 0) == 0
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if lib.team_meet(made, 10) == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert lib.team_visits(made, 3, 0) == 0


def test_a_meeting_is_far_cheaper_than_a_sleep(lib: ctypes.CDLL) -> None:
    """Best of many short bursts: a kernel wake-up costs 20 us and more. Needs two free processors at some moment."""
    processors = len(os.sched_getaffinity(0))
    if processors < 2:
        pytest.skip("one processor")
    barrier = run = float("inf")
    end = time.monotonic() + 4
    with team(lib, 2) as made:
        while (barrier > 5_000 or run > 15_000) and time.monotonic() < end:
            barrier = min(barrier, lib.team_barrier_ns(made, 50))
            run = min(run, lib.team_run_ns(made, 10))
    if os.getloadavg()[0] > processors and not barrier < 5_000:
        pytest.skip(f"other work keeps {processors} processors busy")
    assert barrier < 5_000 and run < 15_000, f"barrier {barrier:.0f} ns, run {run:.0f} ns"
