"""Hello, AdaFlex: a real sentence encoder under a memory and a loss budget, planned, proven, compiled, measured.

Nothing of AdaFlex is imported: torch finds the backend by its name.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import sentences

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


def compare(model: Any, planned: Any, tokenizer: Any) -> None:
    """The same search by both models, then latency and error against eager and Inductor."""
    exact, ours = search(model, tokenizer), search(planned, tokenizer)
    best = exact.topk(2).values
    clear = (best[:, 0] - best[:, 1]) > TIE
    same = exact.argmax(1) == ours.argmax(1)
    print(
        f"search: top-1 as in fp32 for {int((same & clear).sum())} of {int(clear.sum())} queries"
        f" ({int((~clear).sum())} ties left out)"
    )
    call = sentences.tokens(tokenizer, sentences.passages(1, seed=9), SHAPE[1])
    wanted = model(**call)
    subjects = {"eager": model, "Inductor": torch.compile(model, dynamic=False), "AdaFlex": planned}
    base = milliseconds(lambda: model(**call))
    for name, subject in subjects.items():
        error = float((subject(**call) - wanted).norm() / wanted.norm())
        took = milliseconds(lambda subject=subject: subject(**call))
        print(f"{name:9} {SHAPE[0]} x {SHAPE[1]}: {took:6.2f} ms ({base / took:4.2f}x eager), error {error:.4f}")


MODEL = sentences.load()


def main() -> None:
    """Compile, run, compare."""
    model, tokenizer = MODEL
    start = time.perf_counter()
    planned = torch.compile(
        model,
        backend="adaflex",
        options={"memory": "40MiB", "loss": 0.02, "calibration": calibration, "report": True},
    )
    with torch.no_grad():
        planned(**sentences.tokens(tokenizer, sentences.passages(1, seed=9), SHAPE[1]))
        print(f"first call, planning included: {time.perf_counter() - start:.1f} s")
        compare(model, planned, tokenizer)


if __name__ == "__main__":
    main()
