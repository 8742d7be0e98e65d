"""Hello, AdaFlex: a real sentence encoder under a memory and a loss budget, planned, proven, compiled, measured.

Nothing of AdaFlex is imported: torch finds the backend by its name.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sentences
import torch

SHAPE = (2, 64)  # texts and tokens that latency is compared at
TIE = 1e-4  # two sentences this close to a query are equally good


def calibration() -> list[dict[str, Any]]:
    """Texts the search will not see, of many lengths: about 5,000 tokens."""
    _, tokenizer = MODEL
    return sentences.batches(tokenizer, sentences.passages(80))


def milliseconds(call: Callable[[], Any]) -> float:
    """Median time of a call."""
    call()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def example(tokenizer: Any) -> dict[str, Any]:
    """The call that latency is compared at."""
    return sentences.tokens(tokenizer, sentences.passages(SHAPE[0], seed=9), SHAPE[1])


def search(model: Any, tokenizer: Any) -> torch.Tensor:
    """Similarity of 100 queries to 500 sentences."""
    found = sentences.embed(model, tokenizer, sentences.queries(100))
    return found @ sentences.embed(model, tokenizer, sentences.sentences(500)).T


def compare(model: Any, planned: Any, tokenizer: Any) -> None:
    """The same search by both, then latency and error beside eager and Inductor."""
    exact = search(model, tokenizer)
    best = exact.topk(2).values
    clear = (best[:, 0] - best[:, 1]) > TIE
    same = (exact.argmax(1) == search(planned, tokenizer).argmax(1)) & clear
    print(
        f"search: top-1 as in fp32 for {int(same.sum())} of {int(clear.sum())} queries"
        f" ({int((~clear).sum())} ties left out)"
    )
    call = example(tokenizer)
    wanted, base = model(**call), 0.0
    for name, subject in {"eager": model, "Inductor": torch.compile(model, dynamic=False), "AdaFlex": planned}.items():
        error = float((subject(**call) - wanted).norm() / wanted.norm())
        took = milliseconds(partial(subject, **call))
        base = base or took
        print(f"{name:8} {SHAPE[0]} x {SHAPE[1]}: {took:6.2f} ms ({base / took:4.2f}x eager), error {error:.4f}")


MODEL = sentences.load()
PAGE = Path("out") / "hello.html"


def main() -> None:
    """Plan with a memory budget and no loss budget, so no worse than bf16; run, compare."""
    model, tokenizer = MODEL
    PAGE.parent.mkdir(exist_ok=True)
    call = example(tokenizer)
    for tensor in call.values():  # batch and length will vary: told so, torch.compile traces once for all of them
        torch._dynamo.mark_dynamic(tensor, (0, 1))
    options = {"memory": "40MiB", "calibration": calibration, "report": str(PAGE), "on_broken": "warn"}
    with torch.no_grad():
        start = time.perf_counter()
        planned = torch.compile(model, backend="adaflex", options=options)
        planned(**call)
        print(f"planned in {time.perf_counter() - start:.1f} s, capture and first call included")
        compare(model, planned, tokenizer)
    print(f"the same as a page: {PAGE}")


if __name__ == "__main__":
    main()
