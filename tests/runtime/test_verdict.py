"""A verdict holds exactly when every asked figure was kept; its text and JSON say the same."""

import json
import subprocess
import sys

import pytest

from adaflex.runtime.verdict import Promise, Verdict, anonymous_bytes, from_json, process_growth


def promise(asked: float | None, measured: float | None, unit: str = "bytes", spread: float = 0.0) -> Promise:
    return Promise("memory", unit, asked, 90.0, measured, spread)


@pytest.mark.parametrize(
    ("made", "held"),
    [
        (promise(100, 100), True),
        (promise(100, 101), False),
        (promise(None, 10**12), True),
        (promise(100, None), True),
        (promise(100, float("nan")), False),
        (promise(100, 104, "ns", spread=5), True),  # within the measurement's own spread
        (promise(100, 106, "ns", spread=5), False),
        (promise(100, 115, "ns", spread=50), False),  # a noisy measurement excuses a tenth at most
        (promise(100, 101, "bytes", spread=50), False),  # bytes are counted, not measured
    ],
)
def test_held(made: Promise, held: bool) -> None:
    assert made.held is held
    assert Verdict((made,)).held is held
    assert Verdict((promise(1, 1), made)).held is held


def test_text_says_what_broke() -> None:
    made = Verdict(
        (
            Promise("memory", "bytes", 120 * 2**20, 98 * 2**20, 98.5 * 2**20),
            Promise("latency", "ns", 2e6, 1.5e6, 3.25e6),
            Promise("loss", "error", None, 0.03, 0.02512),
        ),
        same_data=True,
    )
    assert made.sentence() == (
        "the plan's promise was broken: latency: asked 2 ms, planned 1.5 ms, measured 3.25 ms: BROKEN"
    )
    lines = made.text().splitlines()
    assert lines[0] == "memory: asked 120.0 MiB, planned 98.0 MiB, measured 98.5 MiB: held"
    assert lines[2] == "loss: planned 0.03, measured 0.02512"
    assert "same data" in lines[3]
    assert "same data" not in Verdict(made.promises).text()


def test_text_when_all_held() -> None:
    assert Verdict((promise(None, 3),)).sentence() == "all promises held"
    assert (
        Verdict((promise(2048, 1024),)).sentence().endswith("asked 2.0 KiB, planned 90 bytes, measured 1.0 KiB: held")
    )


def test_json_comes_back() -> None:
    made = Verdict((promise(100, 101, "ns", 2.5), promise(None, None)), True, "machine")
    plain = json.loads(json.dumps(made.to_json()))
    assert from_json(plain) == made
    assert plain["promises"][0]["held"] is True and plain["held"] is True
    with pytest.raises(ValueError, match="schema"):
        from_json({**plain, "schema": 99})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not report anonymous memory")
def test_process_memory_sees_what_is_held_and_not_what_is_given_back() -> None:
    code = (
        "from adaflex.runtime.verdict import process_growth\n"
        "kept, _ = process_growth(lambda: bytearray(b'x') * (64 << 20))\n"
        "gone, _ = process_growth(lambda: len(bytearray(b'x') * (64 << 20)))\n"
        "print(kept, gone)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, gone = map(int, done.stdout.split())
    assert 64 << 20 <= kept < 66 << 20
    assert abs(gone) < 2 << 20
    assert anonymous_bytes() > 0


def test_elsewhere_memory_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    from adaflex.runtime import verdict

    monkeypatch.setattr(verdict, "ROLLUP", Path("/no/such/file"))
    assert anonymous_bytes() == 0 and process_growth(lambda: 3) == (0, 3)


def test_a_squared_error_is_read_as_its_root_everywhere() -> None:
    made = Promise("loss", "squared relative error", 0.03**2, 0.02**2, 0.04**2)
    assert made.sentence() == "loss: asked 0.03, planned 0.02, measured 0.04: BROKEN"
    assert "measured 0.04: BROKEN" in Verdict((made,)).sentence() and "asked 0.03" in Verdict((made,)).text()
    assert Promise("loss", "KL divergence", 0.03, None, 0.04).sentence() == "loss: asked 0.03, measured 0.04: BROKEN"
    assert "measured nan: BROKEN" in Promise("loss", "squared relative error", 0.01, None, float("nan")).sentence()
