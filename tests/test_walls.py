"""The import table of the design: which folder may import what, of AdaFlex and of others."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("passes", "solver", "codegen", "runtime")

OWN = {  # prefixes of adaflex.* each folder may import
    "solver": ("solver", "errors", "settings", "native"),
    "runtime": ("runtime", "errors", "settings", "native"),
    "passes": ("passes", "errors", "settings", "solver.table"),
    "codegen": (
        "codegen",
        "errors",
        "settings",
        "native",
        "passes.capture",
        "passes.rewrite",
        "passes.windows",
        "solver.plan",
        "solver.table",
        "runtime.program",
        "runtime.region",
    ),
}
OTHERS = {
    "solver": {"numpy", "networkx", "pulp", "highspy", "ortools"},
    "runtime": {"torch", "numpy", "safetensors"},
    "passes": {"torch", "numpy", "filelock"},
    "codegen": {"torch", "numpy", "triton"},
}
COMMON_FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "imp"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def faults(stage: str, names: Iterator[str], stdlib: frozenset[str]) -> list[str]:
    found = []
    for name in names:
        top = name.partition(".")[0]
        if top in STAGES:
            found.append(f"import adaflex.{name}, not {name}: a second copy of every class")
        elif top == "adaflex":
            rest = name.removeprefix("adaflex.")
            if not any(rest == allowed or rest.startswith(allowed + ".") for allowed in OWN[stage]):
                found.append(f"{stage} may not import adaflex.{rest}")
        elif top in COMMON_FORBIDDEN or (top not in stdlib and top not in OTHERS[stage]):
            found.append(f"{stage} may not import {top}")
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_imports_point_one_way(stage: str) -> None:
    import sys

    stdlib = frozenset(sys.stdlib_module_names) | {"__future__"}
    bad = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in sorted((ROOT / stage).rglob("*.py"))
        for fault in faults(stage, imported(path), stdlib)
    ]
    assert not bad, "\n".join(bad)


def test_a_planted_fault_is_found() -> None:
    import sys

    stdlib = frozenset(sys.stdlib_module_names)
    assert faults("solver", iter(["torch"]), stdlib)
    assert faults("runtime", iter(["adaflex.solver.pack"]), stdlib)
    assert faults("passes", iter(["solver.table"]), stdlib)
    assert faults("codegen", iter(["pickle"]), stdlib)
    assert not faults("passes", iter(["adaflex.solver.table.Site", "torch.fx"]), stdlib)


@pytest.mark.parametrize("stage", STAGES)
def test_links_point_at_the_stage_folders(stage: str) -> None:
    link = ROOT / "src" / "adaflex" / stage
    if not link.is_symlink():
        pytest.skip("this checkout keeps no links (core.symlinks is off)")
    assert link.readlink() == Path("../..") / stage


def sources() -> list[Path]:
    folders = [*(ROOT / stage for stage in STAGES), ROOT / "src"]
    return sorted({p.resolve() for folder in folders for p in folder.rglob("*.py")})


@pytest.mark.parametrize("word", ["eval(", "exec(", "torch.load(", "yaml.load", "shell=True", "pickle."])
def test_nothing_executes_text(word: str) -> None:
    import re

    pattern = re.compile(r"(?<![\w.])" + re.escape(word))
    bad = [str(path) for path in sources() if pattern.search(path.read_text())]
    assert not bad


def test_the_environment_is_read_in_settings_only() -> None:
    bad = [
        str(path)
        for path in sources()
        if path.name != "settings.py" and any(word in path.read_text() for word in ("os.environ", "os.getenv"))
    ]
    assert not bad


def test_private_torch_symbols_live_in_torch_compat() -> None:
    bad = []
    for path in sources():
        if path.name == "torch_compat.py":
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "torch" and any(part.startswith("_") and part != "__future__" for part in parts[1:]):
                bad.append(f"{path.relative_to(ROOT)}: {name}")
    assert not bad, "\n".join(bad)
