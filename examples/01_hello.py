"""Hello, AdaFlex: a real sentence encoder under a memory and a loss budget, planned, proven, compiled, measured.

Nothing of AdaFlex is imported: torch finds the backend by its name.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import sentences
import torch

SHAPE = (1, 128)  # batch and tokens that latency is compared at
TIE = 1e-4  # two sentences this close to a query are equally good


def calibration() -> list[dict[str, Any]]:
    """Texts the search will not see, of many lengths: about 6,000 tokens."""
    _, tokenizer = MODEL
    return sentences.batches(tokenizer, sentences.passages(96))


def milliseconds(call: Callable[[], Any]) -> float:
    """Median time of a call."""
    call()
    times = []
    for _ in range(30):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def search(model: Any, tokenizer: Any) -> torch.Tensor:
    """Similarity of 100 queries to 500 sentences."""
    found = sentences.embed(model, tokenizer, sentences.queries(100))
    return found @ sentences.embed(model, tokenizer, sentences.sentences(500)).T


def compare(model: Any, planned: Mapping[str, Any], tokenizer: Any) -> None:
    """The same search by every plan, then latency and error against eager and Inductor."""
    exact = search(model, tokenizer)
    best = exact.topk(2).values
    clear = (best[:, 0] - best[:, 1]) > TIE
    for name, subject in planned.items():
        same = (exact.argmax(1) == search(subject, tokenizer).argmax(1)) & clear
        print(
            f"search, {name}: top-1 as in fp32 for {int(same.sum())} of {int(clear.sum())} queries"
            f" ({int((~clear).sum())} ties left out)"
        )
    call = sentences.tokens(tokenizer, sentences.passages(1, seed=9), SHAPE[1])
    wanted = model(**call)
    subjects = {"eager": model, "Inductor": torch.compile(model, dynamic=False), **planned}
    base = milliseconds(lambda: model(**call))
    for name, subject in subjects.items():
        error = float((subject(**call) - wanted).norm() / wanted.norm())
        took = milliseconds(partial(subject, **call))
        print(f"{name:20} {SHAPE[0]} x {SHAPE[1]}: {took:6.2f} ms ({base / took:4.2f}x eager), error {error:.4f}")


MODEL = sentences.load()
PAGE = Path("out") / "hello.html"


def main() -> None:
    """Plan twice from one set of measurements: no worse than bf16, and within 3 percent; run, compare."""
    model, tokenizer = MODEL
    PAGE.parent.mkdir(exist_ok=True)
    call = sentences.tokens(tokenizer, sentences.passages(1, seed=9), SHAPE[1])
    wishes = {
        "AdaFlex, default": {"memory": "64MiB", "report": True},
        "AdaFlex, 3 % loss": {"memory": "40MiB", "loss": 0.025, "report": str(PAGE)},
    }
    planned = {}
    with torch.no_grad():
        for name, wish in wishes.items():
            start = time.perf_counter()
            options = {**wish, "calibration": calibration, "on_broken": "warn"}
            planned[name] = torch.compile(model, backend="adaflex", options=options)
            planned[name](**call)
            print(f"{name}: planned in {time.perf_counter() - start:.1f} s, first call included")
        compare(model, planned, tokenizer)
    print(f"the second plan's page: {PAGE}")


if __name__ == "__main__":
    main()
