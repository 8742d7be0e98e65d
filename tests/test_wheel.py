"""A wheel holds the stage folders, from a checkout with links, without them, and from a source zip."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("passes", "solver", "codegen", "runtime")


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists() or (ROOT / name).is_symlink()]


def copy_to(folder: Path, *, links: bool) -> None:
    for name in tracked():
        source, target = ROOT / name, folder / name
        if source.is_symlink():
            if links:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.readlink())
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_wheel_is_complete(tmp_path: Path, links: bool) -> None:
    tree = tmp_path / "tree"
    copy_to(tree, links=links)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("adaflex/")}
    wanted = {
        ("adaflex/" + name.removeprefix("src/adaflex/")) if name.startswith("src/adaflex/") else "adaflex/" + name
        for name in tracked()
        if (name.split("/")[0] in STAGES or name.startswith("src/adaflex/")) and not (ROOT / name).is_symlink()
    }
    assert wanted == inside
