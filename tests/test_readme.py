"""What the README shows works as it is written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands_are_what_bootstrap_offers() -> None:
    shown = re.findall(r"python3 (tools/bootstrap\.py) (\w+)", README)
    refused = subprocess.run([sys.executable, ROOT / "tools/bootstrap.py", "x"], capture_output=True, text=True)

    assert {("tools/bootstrap.py", "demo"), ("tools/bootstrap.py", "test")} == set(shown)
    assert (refused.returncode, refused.stderr) == (2, "usage: python3 tools/bootstrap.py demo|test [ARGUMENTS]\n")


def test_every_command_shown_exists() -> None:
    shown = set(re.findall(r"ofq-deploy ([a-z]+)", README)) - {"is"}
    done = subprocess.run([sys.executable, "-m", "ofq_deploy", "--help"], capture_output=True, text=True, cwd=ROOT)

    assert shown == {name for name in shown if re.search(rf"\n  {name} ", done.stdout)}
    assert {"train", "export", "validate", "bench", "inspect", "predict", "doctor"} <= shown


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks("python")
    tiny = '"train.epochs": 1, "teacher.epochs": 1, "cga.epochs": 1, "model.depth": 1'
    script = example.replace('"train.epochs": 4', tiny)
    assert script != example

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True ")
