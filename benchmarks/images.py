"""Convolutional networks against their peers: latency and error, every subject in a process of its own.

    python benchmarks/images.py [--rounds 5] [--models resnet18,resnet50,mobilenet_v2] [--batches 1,8]

Models of transformers' configurations with random weights (nothing is fetched), images of noise, 224 x 224. Subjects
take turns; printed is the median of the rounds' medians with their spread, and ratios are taken round by round. Every
peer runs at its best here: Inductor with frozen weights and images channels last, OpenVINO (in the environment that
benchmarks/peers.sh makes; where it is missing it is left out, and that is said) with its latency hint.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
BURST_S = 0.5
OURS = {"adaflex lossless": {"loss": 1e-4}, "adaflex default": {}}
TORCH = ("eager", "inductor", "inductor-bf16")
FOREIGN = ("openvino", "openvino-bf16")


def model_of(name: str) -> Any:
    """A network in eval, [batch, 3, 224, 224] -> [batch, channels], the same weights in every process."""
    import torch
    import transformers

    configs: dict[str, Callable[[], Any]] = {
        "resnet18": lambda: transformers.ResNetConfig(
            hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
        ),
        "resnet50": transformers.ResNetConfig,
        "mobilenet_v2": transformers.MobileNetV2Config,
    }

    class Pooled(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Any) -> Any:
            return self.inner(images).pooler_output.flatten(1)

    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(configs[name]())
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return Pooled(model).eval().requires_grad_(False)


def images(count: int, seed: int) -> Any:
    """Noise."""
    import torch

    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def subject(kind: str, model: str, folder: Path) -> Callable[[Any], Any]:
    """A function of images."""
    import torch

    if kind in OURS:
        import adaflex

        return adaflex.load(str(folder / f"{model}-{kind.replace(' ', '-')}.afx"))
    plain = model_of(model)
    plain.load_state_dict(torch.load(folder / f"{model}.pt", weights_only=True))
    if kind in FOREIGN:
        import openvino

        converted = openvino.convert_model(plain, example_input=images(1, 0))
        precision = "bf16" if kind.endswith("bf16") else "f32"
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"}
        request = openvino.compile_model(converted, "CPU", options).create_infer_request()
        return lambda x: torch.from_numpy(request.infer([x.numpy()])[0].copy())
    if kind == "eager":
        return plain  # type: ignore[no-any-return]
    import torch._inductor.config as config

    config.freezing = True
    dtype = torch.bfloat16 if kind.endswith("bf16") else torch.float32
    frozen = torch.compile(plain.to(dtype).to(memory_format=torch.channels_last), dynamic=False)
    return lambda x: frozen(x.to(dtype).contiguous(memory_format=torch.channels_last))


def serve(kind: str, model: str, folder: Path) -> None:
    """Read batch sizes from stdin, answer each with a burst's figures as JSON."""
    import torch

    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    call = subject(kind, model, folder)
    print("ready", flush=True)
    for line in sys.stdin:
        batch = int(line)
        x, wanted = images(batch, 7), torch.load(folder / f"{model}-{batch}.pt", weights_only=True)
        error = float((call(x).float() - wanted).norm() / wanted.norm())
        times: list[float] = []
        end = time.perf_counter() + BURST_S
        while time.perf_counter() < end or len(times) < 5:
            start = time.perf_counter()
            call(x)
            times.append(time.perf_counter() - start)
        print(json.dumps({"ms": statistics.median(times) * 1000, "error": error}), flush=True)


class Subject:
    """A subject's process."""

    def __init__(self, kind: str, model: str, folder: Path) -> None:
        self.kind = kind
        python = str(PEERS) if kind in FOREIGN else sys.executable
        command = [python, str(Path(__file__).resolve()), "--serve", kind, "--models", model, "--folder", str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read("ready")

    def read(self, start: str) -> str:
        """The next line that begins so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise SystemExit(f"{self.kind} ended")

    def ask(self, batch: int) -> dict[str, float]:
        """A burst."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batch}\n")
        self.process.stdin.flush()
        return dict(json.loads(self.read("{")))


def prepare(name: str, batches: list[int], folder: Path) -> dict[str, int]:
    """Weights, answers and our artifacts; returns stored bytes of the weights."""
    import torch

    import adaflex

    torch.set_num_threads(2)
    model = model_of(name)
    torch.save(model.state_dict(), folder / f"{name}.pt")
    with torch.no_grad():
        for batch in batches:
            torch.save(model(images(batch, 7)), folder / f"{name}-{batch}.pt")
    data = [(images(4, seed),) for seed in range(100, 106)]
    sizes = {"eager": sum(value.numel() * value.element_size() for value in model.parameters())}
    for kind, options in OURS.items():
        program = adaflex.compile(model, (images(1, 0),), calibration=data, on_broken="warn", **options)
        program.save(folder / f"{name}-{kind.replace(' ', '-')}.afx")
        sizes[kind] = program.memory(images(1, 0))["weights"]
    return sizes


def measure(name: str, batches: list[int], rounds: int, folder: Path) -> None:
    """Markdown rows of one model."""
    sizes = prepare(name, batches, folder)
    kinds = [*OURS, *TORCH, *(FOREIGN if PEERS.exists() else ())]
    subjects = [Subject(kind, name, folder) for kind in kinds]
    found: dict[tuple[str, int], list[dict[str, float]]] = {(k, b): [] for k in kinds for b in batches}
    for _ in range(rounds):
        for batch in batches:
            for each in subjects:
                found[each.kind, batch].append(each.ask(batch))
    for each in subjects:
        each.process.kill()
    for kind in kinds:
        cells = []
        for batch in batches:
            times = sorted(entry["ms"] for entry in found[kind, batch])
            pairs = zip(found["adaflex default", batch], found[kind, batch], strict=True)
            ratio = statistics.median(ours["ms"] / theirs["ms"] for ours, theirs in pairs)
            cells.append(f"{statistics.median(times):.1f} ({times[0]:.1f}-{times[-1]:.1f}) | {ratio:.2f}")
        error = max(found[kind, batch][-1]["error"] for batch in batches)
        stored = f"{sizes[kind] / 1e6:.1f}" if kind in sizes else ""
        print(f"| {name} | {kind} | {' | '.join(cells)} | {error:.4f} | {stored} |", flush=True)


def main() -> None:
    """All models, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="resnet18,resnet50,mobilenet_v2")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.models, Path(args.folder))
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    batches = [int(each) for each in args.batches.split(",")]
    if not PEERS.exists():
        print("OpenVINO is left out: run benchmarks/peers.sh first", file=sys.stderr)
    columns = " | ".join(f"batch {batch} ms | ours to it" for batch in batches)
    print(f"| model | subject | {columns} | error | weights MB |")
    print("|---" * (4 + 2 * len(batches)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models.split(","):
            measure(name, batches, args.rounds, Path(folder))
    return None


if __name__ == "__main__":
    main()
