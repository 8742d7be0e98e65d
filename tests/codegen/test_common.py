"""What units have in common, compiled once: nothing of what comes out changes, and nothing depends on it."""

import logging
import os
from pathlib import Path

import pytest
import torch

from adaflex import native
from adaflex.building import executor
from adaflex.codegen.cpp import include_folder, tiles_macro
from adaflex.codegen.kernels.menu import MENU
from adaflex.native import Common, build
from adaflex.passes.export_door import from_export
from adaflex.solver.table import Encoding
from tests.codegen.batched import supported
from tests.codegen.lowered import program_of
from tests.codegen.test_products import ENCODINGS
from tests.passes.models import zoo

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler here")
ONE = Common(("one.h",), (("extern template int twice<int>(int);", "template int twice<int>(int);"),))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "FEW", 2)
    native._built.clear()
    return tmp_path / "cache" / "native"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers" / "one.h").write_text("#pragma once\ntemplate <class T> T twice(T x) { return x + x; }\n")
    return tmp_path / "headers"


def unit(folder: Path, number: int) -> int:
    source = f'#include "one.h"\nextern "C" int f() {{ return twice<int>({number}); }}\n'
    return int(native.load(build(source, includes=[folder], common=ONE)).f())


def kinds(cache: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in cache.iterdir() if path.suffix in (".gch", ".o", ".so"))


def test_the_third_unit_of_a_process_builds_what_all_have_in_common(cache: Path, folder: Path) -> None:
    assert [unit(folder, k) for k in (1, 2)] == [2, 4] and kinds(cache) == ["unit"] * 2
    assert unit(folder, 3) == 6 and kinds(cache) == ["common", "part", *["unit"] * 3]
    native._built.clear()  # another process uses what is there from its first unit on
    assert unit(folder, 4) == 8 and kinds(cache) == ["common", "part", *["unit"] * 4]
    assert "extern template" in max(cache.glob("unit-*.cpp"), key=lambda path: path.stat().st_mtime_ns).read_text()


@pytest.mark.parametrize("suffix", ["gch", "o"])
@pytest.mark.parametrize("fault", ["cut", "changed", "gone"])
def test_a_damaged_part_is_built_again(cache: Path, folder: Path, suffix: str, fault: str) -> None:
    for k in (1, 2, 3):
        unit(folder, k)
    (path,) = cache.glob(f"*.{suffix}")
    content = path.read_bytes()
    path.unlink()
    if fault != "gone":
        path.write_bytes(content[:-100] if fault == "cut" else content[:-90] + b"x" * 10 + content[-80:])
    assert unit(folder, 4) == 8
    assert native.is_whole(path)


def test_precompiled_headers_of_weeks_ago_go(cache: Path, folder: Path) -> None:
    cache.mkdir(parents=True)
    old, young = cache / "common-old.h.gch", cache / "common-young.h.gch"
    for path in (old, young):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    for k in (1, 2, 3):
        unit(folder, k)
    assert young.exists() and not old.exists()


def test_a_unit_that_common_parts_do_not_fit_is_compiled_whole(
    cache: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Common(("one.h",), (("no C++ at all;", ""),))
    caplog.set_level(logging.DEBUG, "adaflex.native")
    for k in (1, 2, 3):
        source = f'#include "one.h"\nextern "C" int f() {{ return twice<int>({k}); }}\n'
        assert native.load(build(source, includes=[folder], common=wrong)).f() == 2 * k
    assert "compiled whole" in caplog.text


def test_every_product_names_its_tiles() -> None:
    """A product without a macro works, but costs every unit its tiles again."""
    text = "".join(path.read_text() for path in include_folder().glob("*.h"))
    shape, met = (64, 256), set()
    for encoding in ENCODINGS:
        family = next(entry for entry in MENU if entry.name == encoding.family)
        if "linear" in family.ops and family.supports(shape, encoding):
            met.add(tiles_macro(family.call(encoding, 256, 64).function))
    assert len(met) >= 7
    for macro in (*met, tiles_macro("attention<true>")):
        assert f"#define {macro}(" in text, macro


@pytest.mark.parametrize("encoding", [Encoding("w8a8", 8), Encoding("w4a8", 4, 64)], ids=str)
def test_programs_are_the_same_to_the_bit(encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo()["bert"]
    inputs = model.inputs()
    capture, weights = from_export(model.model(), inputs)
    program, made = program_of(capture, weights, lambda shape: encoding if shape[1] % 64 == 0 else Encoding("fp32"))
    found = []
    for few in (0, 1 << 30):  # with common parts, then without any
        monkeypatch.setattr(native, "FEW", few)
        monkeypatch.setenv("ADAFLEX_CACHE_DIR", str(tmp_path / str(few)))
        found.append(executor(program, made, supported(), 1)(*inputs))
    assert any((tmp_path / "0" / "native").glob("part-*.o"))
    assert not any((tmp_path / str(1 << 30) / "native").glob("part-*.o"))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
