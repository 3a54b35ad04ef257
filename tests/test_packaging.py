"""The package works from a wheel, from a bare checkout, and lists everything it ships."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ofq_deploy

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ofq_deploy", "train", "export", "runtime_tests")
WHERE = "import ofq_deploy, ofq_deploy.train, ofq_deploy.export, ofq_deploy.runtime_tests as r; print(r.__file__)"


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, env=_environment() | environment
    )


def _environment() -> dict[str, str]:
    import os

    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, so that building leaves nothing behind in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def installed_wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked into a folder of its own without its dependencies."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "-q")
    built = run(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(wheels), str(checkout), cwd=wheels)
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("*.whl")
    done = run(*pip, "install", "--no-deps", "--target", str(site), str(wheel), cwd=wheels)
    assert done.returncode == 0, done.stderr
    return site


def test_every_package_on_disk_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        (
            path.parent.relative_to(ROOT)
            if path.parent.parts[len(ROOT.parts)] == "ofq_deploy"
            else Path("ofq_deploy") / path.parent.relative_to(ROOT)
        )
        .as_posix()
        .replace("/", ".")
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }

    assert found == set(listed)


def test_wheel_holds_every_module_and_data_file(installed_wheel: Path) -> None:
    for folder in FOLDERS:
        inside = installed_wheel / ("ofq_deploy" if folder == "ofq_deploy" else f"ofq_deploy/{folder}")
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert (inside / file.relative_to(ROOT / folder)).is_file(), file


def test_wheel_runs_and_exports_from_another_folder(installed_wheel: Path, tiny_run: Path, tmp_path: Path) -> None:
    path = str(installed_wheel)
    where = run("-c", WHERE, cwd=tmp_path, PYTHONPATH=path)
    helped = run("-m", "ofq_deploy", "--help", cwd=tmp_path, PYTHONPATH=path)
    command = ("-m", "ofq_deploy", "export", str(tiny_run), "--to", "onnx", "-o", "model.onnx", "--quiet")
    exported = run(*command, cwd=tmp_path, PYTHONPATH=path)

    assert where.stdout.startswith(path), where.stderr
    assert helped.returncode == 0, helped.stderr
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "model.onnx").is_file()


def test_checkout_runs_without_being_installed(checkout: Path) -> None:
    where = run("-c", WHERE, cwd=checkout)
    helped = run("-m", "ofq_deploy", "--help", cwd=checkout)

    assert str(checkout / "runtime_tests" / "__init__.py") == where.stdout.strip()
    assert helped.returncode == 0, helped.stderr


@pytest.mark.parametrize("name", ["train", "export", "runtime_tests"])
def test_short_names_are_refused(name: str) -> None:
    done = run("-c", f"import {name}", cwd=ROOT)

    assert done.returncode == 1
    assert f"import ofq_deploy.{name}, not {name}" in done.stderr


def test_public_names() -> None:
    assert ofq_deploy.__all__ == ["bench", "convert", "export", "freeze", "load_frozen", "train", "validate"]
    assert all(callable(getattr(ofq_deploy, name)) for name in ofq_deploy.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ofq_deploy.nothing
