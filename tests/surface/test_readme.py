"""The code in README.md runs as it stands, in the order in which it stands there; links and folders exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from adaflex.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(README)
    assert [(language, name) for language, name, _ in blocks] == [
        ("python", "hello.py"),
        ("sh", ""),
        ("python", "load.py"),
    ]
    printed = {}
    for language, name, text in blocks:
        if language == "python":
            (tmp_path / name).write_text(text)
            printed[name] = run([sys.executable, name], tmp_path)
        else:
            for line in text.splitlines():
                name, *words = shlex.split(line)
                assert name == "adaflex" and main(words) == 0, (line, capsys.readouterr())
    assert float(re.search(r"relative error ([0-9.]+)", printed["hello.py"])[1]) < 0.03  # type: ignore[index]
    assert "torch.Size([7, 256])" in printed["load.py"] and "all promises held" in printed["load.py"]


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_paths_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    for path in re.findall(r"`((?:passes|solver|codegen|runtime|src|tests|examples|benchmarks|docs)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path
