"""Frozen files of format 1, one for each form, are read, and what is exported from them has not changed by a byte."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from ofq_deploy.errors import FrozenFileError, UnsupportedByTarget
from ofq_deploy.export.fp32 import build_fp32
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.frozen import Frozen, load_frozen, save_frozen
from ofq_deploy.targets import TARGETS

DATA = Path(__file__).parent / "data"
EXPORTS: dict[str, dict[str, str]] = json.loads((DATA / "exports-of-format1.json").read_text())
THEN = sorted({target for exports in EXPORTS.values() for target in exports} - {"fp32"})  # the targets that there were


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("format1")
    with zipfile.ZipFile(DATA / "frozen-format1.zip") as archive:
        archive.extractall(path)
    return path


def written(frozen: Frozen, target: str, sha256: str, path: Path) -> str:
    """sha256 of an export."""
    write_checked(build(frozen, TARGETS[target], None, sha256), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", EXPORTS)
def test_exports_of_every_form_are_the_same_bytes(form: str, folder: Path, tmp_path: Path) -> None:
    """Also when the file was saved anew in today's format; the hash of the frozen file, which a model names, held fixed."""
    path = folder / f"{form}.safetensors"
    frozen, sha256 = load_frozen(path), hashlib.sha256(path.read_bytes()).hexdigest()
    save_frozen(frozen, tmp_path / "today.safetensors")
    today = load_frozen(tmp_path / "today.safetensors")

    assert frozen.graph == today.graph
    for target in THEN:
        if target in EXPORTS[form]:
            for same in (frozen, today):
                assert EXPORTS[form][target] == written(same, target, sha256, tmp_path / "model.onnx"), target
        else:
            with pytest.raises(UnsupportedByTarget):
                build(frozen, TARGETS[target])


@pytest.mark.parametrize("form", [form for form, exports in EXPORTS.items() if "fp32" in exports])
def test_the_float_model_is_the_same_bytes(form: str, folder: Path, tmp_path: Path) -> None:
    frozen = load_frozen(folder / f"{form}.safetensors")
    write_checked(build_fp32(frozen, folder / f"{form}.teacher.safetensors"), tmp_path / "fp32.onnx")

    assert EXPORTS[form]["fp32"] == hashlib.sha256((tmp_path / "fp32.onnx").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("quantization", "weight_bits", 9),
        ("architecture", "heads", 3),
        ("architecture", "dim", None),
        ("linears", "head", None),
        ("linears", "head", {"grid": "signed", "bits": 9}),
        ("linears", "head", {"grid": "odd", "bits": 8}),
        ("linears", "surprise", {"grid": "signed", "bits": 8}),
        ("quantizers", "blocks.0.attn.softmax", None),
        ("quantizers", "blocks.0.attn.softmax", {"grid": "unsigned", "bits": 1, "folded": False}),
        ("quantizers", "blocks.0.attn.v", {"grid": "signed", "bits": 4, "folded": False}),
    ],
)
def test_a_damaged_table_is_refused(section: str, key: str, value: Any, folder: Path, tmp_path: Path) -> None:
    with safe_open(folder / "w4a4-qkr-token-shift-dist-statsq.safetensors", framework="numpy") as file:
        header = json.loads(file.metadata()["ofq_deploy"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if value is None:
        del header[section][key]
    else:
        header[section][key] = value
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"ofq_deploy": json.dumps(header)})

    with pytest.raises(FrozenFileError, match=r"model\.safetensors"):
        load_frozen(path)
