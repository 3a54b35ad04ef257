"""Checkpoints of OFQ's official code: imported, compared with golden data, or refused in one line."""

import argparse
import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from ofq_deploy import api, cli
from ofq_deploy.commands import validate as validation
from ofq_deploy.data.datasets import folder_preprocessing
from ofq_deploy.errors import DataError, ModelError, OfqError, RunError
from ofq_deploy.files import sha256
from ofq_deploy.model.frozen import load_frozen
from ofq_deploy.pages.report import render
from ofq_deploy.progress import Reporter
from ofq_deploy.runtime_tests.proof.golden import compare_golden, load_golden
from ofq_deploy.train.freeze import freeze
from ofq_deploy.train.reference import weight_units
from ofq_deploy.train.sources import unpickle
from ofq_deploy.train.sources.official import load_official
from tests.support.models import sizes
from tests.support.official_mini import (
    DEPTH,
    DIM,
    Bits,
    State,
    checkpoint,
    edited,
    golden,
    sample_images,
    without_steps,
)
from tests.support.real_data import real
from tests.support.schemas import check

CHECKPOINT, GOLDEN = "ofq-official/deit_t_w4a4_qkr.pth.tar", "ofq-official/deit_t_w4a4_qkr.golden.npz"
LABELS = tuple("0123456789")
Done = subprocess.CompletedProcess[str]
Golden = dict[str, Any]  # of arrays


def _run(*arguments: object, cwd: Path) -> Done:
    command = [sys.executable, "-m", "ofq_deploy", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True)


def _ok(done: Done) -> Done:
    assert done.returncode == 0, done.stderr
    return done


def _refused(done: Done) -> str:
    """The one line that a refused command wrote."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("ofq-deploy: ")
    return lines[0].removeprefix("ofq-deploy: ")


def _listing(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def _save_golden(arrays: Golden, path: Path) -> Path:
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are read by the same code, without starting a second interpreter."""

    def run(command: list[str], **_: Any) -> Done:
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                code = unpickle._main(Path(command[3]), Path(command[4]), command[5] == "1")
        except Exception as error:  # an interpreter of its own would end with a traceback
            code = 1
            errors.write(f"Traceback ...\n{type(error).__name__}: {error}\n")
        return subprocess.CompletedProcess(command, code, "", errors.getvalue())

    monkeypatch.setattr(unpickle, "subprocess", SimpleNamespace(run=run))


@pytest.fixture
def refusal(same_process: None, tmp_path: Path) -> Callable[..., str]:
    """Imports what must be refused, checks that nothing was written, and returns the message."""

    def refuse(content: object, **options: Any) -> str:
        path = content if isinstance(content, Path) else _save(content, tmp_path / "file.pth.tar")
        before = _listing(tmp_path)
        with pytest.raises(OfqError) as caught:
            api.import_checkpoint(path, output=tmp_path / "run", **options)

        assert _listing(tmp_path) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


@pytest.fixture(scope="module")
def mini() -> dict[str, Any]:
    """W4A4, QKR, distilled."""
    return checkpoint("qkr", True, 4)


@pytest.fixture(scope="module")
def mini_golden(mini: dict[str, Any]) -> Golden:
    return golden(mini)


@pytest.fixture
def imported(mini: dict[str, Any], same_process: None, tmp_path: Path) -> Path:
    return api.import_checkpoint(_save(mini, tmp_path / "mini.pth.tar"), output=tmp_path / "run")


def _load(file: dict[str, Any]) -> Any:
    return load_official(unpickle.Checkpoint(file["state_dict"], vars(file["args"])))


def _judge(file: dict[str, Any], expected: Golden) -> dict[str, Any]:
    """Golden comparison without a run folder in between."""
    official = _load(file)
    frozen = freeze(official.model, official.quantization, folder_preprocessing(official.base.image_size), LABELS)
    return compare_golden(frozen, expected, weight_units(official.model), Reporter(True))


# What the tests compare with.


@pytest.mark.parametrize(("attention", "outside", "per_block"), [("qkr", 24, 38), ("qk", 24, 36)])
def test_the_small_checkpoint_has_as_many_tensors_as_the_official_layout(
    attention: str, outside: int, per_block: int
) -> None:
    """12 blocks then make 480 and 456 tensors, as in the official files."""
    state = checkpoint(attention, True, 4)["state_dict"]

    assert len(state) == outside + DEPTH * per_block


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("attention", ["qkr", "qk"])
def test_codes_of_the_small_model_fill_their_grids(attention: str, bits: int) -> None:
    arrays = golden(checkpoint(attention, True, bits))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    signed = ["x", "v", "proj_in", "fc1_in", *(["z"] if attention == "qkr" else ["q", "k"])]

    assert {(int(arrays[f"code_{name}"].min()), int(arrays[f"code_{name}"].max())) for name in signed} == {(low, high)}
    assert [int(arrays[f"code_{name}"].max()) for name in ("p", "fc2_in")] == [2**bits - 1] * 2


# Import, and the comparison with golden data.


@pytest.mark.parametrize(
    ("attention", "distilled", "bits"),
    [
        ("qkr", True, 2),
        ("qkr", False, 3),
        ("qkr", True, 4),
        ("qkr", False, 8),
        ("qkr", True, (3, 8)),
        ("qk", False, 2),
        ("qk", True, 3),
        ("qk", False, 4),
        ("qk", True, 8),
        ("qk", False, (8, 2)),
    ],
)
def test_an_imported_checkpoint_computes_what_the_official_model_does(
    attention: str, distilled: bool, bits: Bits, same_process: None, tmp_path: Path
) -> None:
    file = checkpoint(attention, distilled, bits, seed=3)
    run = api.import_checkpoint(_save(file, tmp_path / "mini.pth.tar"), output=tmp_path / "run")
    result = api.validate(run, golden=_save_golden(golden(file), tmp_path / "golden.npz"), report=Reporter(True))
    check(result)
    page = render("title", [result])
    assert [
        row for row in (result["weights"] + result["blocks"]) if row.get("name", row.get("block")) not in page
    ] == []
    frozen = load_frozen(run / "frozen.safetensors")
    weights = ["attn.z", "attn.v"] if attention == "qkr" else ["attn.qkv"]
    weights = [f"blocks.0.{name}" for name in (*weights, "attn.proj", "mlp.fc1", "mlp.fc2")]

    assert (result["passed"], result["faults"]) == (True, [])
    assert [row["name"] for row in result["weights"]] == [
        *weights,
        *(["head", "head_dist"] if distilled else ["head"]),
        "patch_embed",
    ]
    assert [row["name"] for row in result["weights"] if row["differing"]] == []
    assert [row["block"] for row in result["blocks"]] == ["blocks.0", "blocks.1"]
    assert all(flip["distance"] <= 1e-3 for row in result["blocks"] for flip in row["flips"])
    assert result["same_prediction"] == result["images"] == 2
    assert (frozen.quantization.weight_bits, frozen.quantization.act_bits) == (
        (bits, bits) if isinstance(bits, int) else bits
    )
    assert (frozen.quantization.attention, list(sizes(frozen).classifiers)) == (
        attention,
        ["head", "head_dist"][: 1 + distilled],
    )
    assert frozen.labels == LABELS


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("attention", ["qkr", "qk"])
def test_flips_of_fine_steps_are_found_and_listed(attention: str, seed: int) -> None:
    """At 8 bits float32 and float64 round some code differently in most of these models."""
    file = checkpoint(attention, True, (4, 8), seed)
    result = _judge(file, golden(file, sample_images(4, seed)))

    assert result["faults"] == []


def test_images_that_are_never_negative_have_an_unsigned_grid() -> None:
    file = checkpoint("qkr", False, 4, signed=False)
    arrays = golden(file)
    official = _load(file)

    assert arrays["code_image"].max() > 127
    assert official.model.patch_embed.proj.input.grid == "unsigned"
    assert _judge(file, arrays)["faults"] == []


@pytest.mark.parametrize("name", ["patch_embed.proj.lsqw_fn.s", "blocks.1.mlp.fc1.input_quant_fn.s"])
def test_a_step_below_the_floor_acts_as_the_floor(name: str, mini: dict[str, Any]) -> None:
    def sink(step: Tensor) -> Tensor:
        step[3] = -0.01
        return step

    file = edited(mini, name, sink)

    assert _judge(file, golden(file))["faults"] == []


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
@pytest.mark.parametrize(("attention", "distilled", "bits"), [("qkr", True, 4), ("qk", False, (2, 8))])
def test_an_imported_checkpoint_exports_to_a_proven_model(
    attention: str,
    distilled: bool,
    bits: Bits,
    target: str,
    same_process: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validation, "FREE_RUN_BUDGET", 0.0)
    random = np.random.default_rng(0)
    for label in ("3", "7"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(2):
            pixels = random.integers(0, 256, size=(40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
    file = _save(checkpoint(attention, distilled, bits), tmp_path / "mini.pth.tar")
    model = api.export(api.import_checkpoint(file, output=tmp_path / "run"), target=target)
    result = api.validate(model, data=str(tmp_path / "data"), report=Reporter(True))

    assert (result["passed"], result["faults"]) == (True, [])
    assert result["witnesses"] == ["ort-cpu", "torch", "oracle"]
    assert result["test_images"] == 4


# What the command line does.


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory, mini: dict[str, Any], mini_golden: Golden) -> tuple[Path, Done]:
    """A working folder with a checkpoint and golden data, and what the import answered."""
    cwd = tmp_path_factory.mktemp("typed")
    _save(mini, cwd / "mini.pth.tar")
    _save_golden(mini_golden, cwd / "golden.npz")
    return cwd, _ok(_run("import", "mini.pth.tar", "--from", "ofq", cwd=cwd))


def test_import_makes_a_run_named_after_the_file(typed: tuple[Path, Done]) -> None:
    cwd, done = typed

    assert done.stdout == "runs/mini\n"
    assert done.stderr == "next: ofq-deploy export runs/mini --to onnx\n"
    assert {path.name for path in (cwd / "runs").iterdir()} == {"mini"}
    assert (cwd / "runs" / "mini" / "manifest.json").is_file()


def test_validate_says_that_the_run_computes_what_the_official_code_did(typed: tuple[Path, Done]) -> None:
    done = _ok(_run("validate", "--golden", "golden.npz", "--quiet", cwd=typed[0]))

    assert done.stdout.startswith("runs/mini against golden.npz, 2 images\n")
    assert done.stdout.splitlines()[-1].startswith("Proven: the run computes what the official code computed on ")


def test_import_does_not_replace_a_run(typed: tuple[Path, Done]) -> None:
    before = _listing(typed[0])
    message = _refused(_run("import", "mini.pth.tar", cwd=typed[0]))

    assert message == "runs/mini exists already; pass --force to replace it or -o for another place"
    assert _listing(typed[0]) == before


def test_an_imported_run_has_no_float_model_to_drop_from(imported: Path) -> None:
    model = api.export(imported, force=True)

    with pytest.raises(RunError, match="was imported: it has no float model to drop from; leave --max-drop out"):
        api.validate(model, data="digits", max_drop=1.0)


def test_import_replaces_a_run_when_forced(mini: dict[str, Any], imported: Path, tmp_path: Path) -> None:
    other = _save(checkpoint("qk", False, 2), tmp_path / "other.pth")
    before = sha256(imported / "frozen.safetensors")
    done = CliRunner().invoke(cli.app, ["import", str(other), "-o", str(imported), "--force", "--json"])

    assert json.loads(done.stdout)["run"] == str(imported)
    assert sha256(imported / "frozen.safetensors") != before
    assert load_frozen(imported / "frozen.safetensors").quantization.attention == "qk"


def test_an_unknown_layout_is_refused(typed: tuple[Path, Done]) -> None:
    message = _refused(_run("import", "mini.pth.tar", "--from", "timm", "-o", "new", cwd=typed[0]))

    assert message == "no checkpoint layout 'timm'; there is ofq"


# Forms of the file.


def _wrapped(file: dict[str, Any], path: Path) -> Path:
    return _save(file | {"state_dict": {f"module.{key}": value for key, value in file["state_dict"].items()}}, path)


def _bare(file: dict[str, Any], path: Path) -> Path:
    return _save(file["state_dict"], path)


def _called_model(file: dict[str, Any], path: Path) -> Path:
    return _save({"model": file["state_dict"]}, path)


def _not_zipped(file: dict[str, Any], path: Path) -> Path:
    torch.save(file, path, _use_new_zipfile_serialization=False)
    return path


def _averaged(file: dict[str, Any], path: Path) -> Path:
    """The file's weights as moving average beside others."""
    other = checkpoint("qkr", True, 4, seed=7)["state_dict"]
    return _save(file | {"state_dict": other, "state_dict_ema": file["state_dict"]}, path)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (_wrapped, {}),
        (_wrapped, {"weight_bits": 4, "act_bits": 4}),
        (_bare, {"weight_bits": 4, "act_bits": 4}),
        (_called_model, {"weight_bits": 4, "act_bits": 4}),
        (_not_zipped, {}),
        (_averaged, {"ema": True}),
    ],
)
def test_every_form_of_the_file_gives_the_same_run(
    make: Callable[[dict[str, Any], Path], Path],
    options: dict[str, Any],
    mini: dict[str, Any],
    imported: Path,
    tmp_path: Path,
) -> None:
    run = api.import_checkpoint(make(mini, tmp_path / "other.pth"), output=tmp_path / "other", **options)

    for name in ("frozen.safetensors", "weights.safetensors", "teacher.safetensors"):
        assert sha256(run / name) == sha256(imported / name)


def test_flags_of_the_command_reach_the_import(mini: dict[str, Any], imported: Path, tmp_path: Path) -> None:
    content = {"state_dict": {}, "state_dict_ema": mini["state_dict"]}
    path, output = _save(content, tmp_path / "ema.pth"), tmp_path / "other"
    flags = ["--ema", "--weight-bits", "4", "--act-bits", "4", "--quiet", "-o", str(output)]
    done = CliRunner().invoke(cli.app, ["import", str(path), *flags])

    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{output}\n", "")
    assert sha256(output / "frozen.safetensors") == sha256(imported / "frozen.safetensors")


def test_the_moving_average_is_only_taken_when_asked_for(mini: dict[str, Any], imported: Path, tmp_path: Path) -> None:
    run = api.import_checkpoint(_averaged(mini, tmp_path / "other.pth"), output=tmp_path / "other")

    assert sha256(run / "frozen.safetensors") != sha256(imported / "frozen.safetensors")


def test_a_file_without_a_moving_average_is_refused(refusal: Callable[..., str], mini: dict[str, Any]) -> None:
    assert refusal(mini, ema=True).endswith(" holds no moving average (state_dict_ema); leave --ema out")


# Bits and the attention form: told once, and never guessed.


def test_bits_that_nobody_tells_are_asked_for(refusal: Callable[..., str], mini: dict[str, Any]) -> None:
    state = mini["state_dict"]

    assert refusal(state) == "the checkpoint does not say its bits (wq_bitw); pass --weight-bits"
    assert refusal(state, weight_bits=4) == "the checkpoint does not say its bits (aq_bitw); pass --act-bits"
    assert refusal(mini | {"args": argparse.Namespace(wq_bitw=4)}).endswith("(aq_bitw); pass --act-bits")


def test_bits_that_contradict_the_file_are_refused(refusal: Callable[..., str], mini: dict[str, Any]) -> None:
    assert refusal(mini, weight_bits=2) == (
        "the checkpoint says wq_bitw=4, --weight-bits says 2; leave --weight-bits out or give the right file"
    )
    assert refusal(mini, act_bits=8) == (
        "the checkpoint says aq_bitw=4, --act-bits says 8; leave --act-bits out or give the right file"
    )


@pytest.mark.parametrize("bits", [1, 9, 32, "four"])
def test_bits_without_a_quantizer_are_refused(bits: object, refusal: Callable[..., str], mini: dict[str, Any]) -> None:
    """32 is how the official code says that a tensor stays float."""
    message = refusal(mini | {"args": argparse.Namespace(wq_bitw=bits, aq_bitw=4)})

    assert str(bits) in message


@pytest.mark.parametrize(("setting", "found_in"), [("wq_bitw", "blocks.0.mlp.fc1"), ("aq_bitw", "blocks.0.attn.input")])
def test_bits_told_wrong_are_found_by_golden_data(
    setting: str, found_in: str, mini: dict[str, Any], mini_golden: Golden
) -> None:
    settings = argparse.Namespace(**vars(mini["args"]) | {setting: 3})
    result = _judge(mini | {"args": settings}, mini_golden)

    assert not result["passed"]
    assert any(fault.startswith(f"{found_in}: ") for fault in result["faults"])


@pytest.mark.parametrize("attention", ["qkr", "qk"])
def test_settings_of_the_other_attention_form_are_refused(attention: str, refusal: Callable[..., str]) -> None:
    file = checkpoint(attention, True, 4)
    file["args"].qk_reparam = attention == "qk"

    assert refusal(file) == (
        f"the checkpoint's settings say qk_reparam={attention == 'qk'}, its tensors are of the other form"
    )


# Tensors that cannot be imported.


def _with(state: State, name: str, place: Any, value: float) -> State:
    changed = state[name].clone()
    changed[place] = value
    return state | {name: changed}


QKR_INPUT = "blocks.0.attn.quant_x_4_qkv.input_quant_fn.s"
DAMAGE: dict[str, tuple[Callable[[State], State], str]] = {
    "a missing key": (
        lambda state: {name: value for name, value in state.items() if name != "blocks.1.mlp.fc2.bias"},
        "the checkpoint lacks 1 tensors: blocks.1.mlp.fc2.bias",
    ),
    "an extra key": (
        lambda state: state | {"blocks.1.attn.gate": torch.ones(1)},
        "the checkpoint has 1 unknown tensors: blocks.1.attn.gate",
    ),
    "an extra key that has no number": (
        lambda state: state | {"blocks.gate": torch.ones(1)},
        "the checkpoint has 1 unknown tensors: blocks.gate",
    ),
    "NaN": (
        lambda state: _with(state, "blocks.1.mlp.fc1.weight", (2, 3), float("nan")),
        "blocks.1.mlp.fc1.weight holds values that are not finite; the checkpoint is damaged or diverged",
    ),
    "an infinite step": (
        lambda state: _with(state, QKR_INPUT, 5, float("inf")),
        f"{QKR_INPUT} holds values that are not finite; the checkpoint is damaged or diverged",
    ),
    "a step too few": (
        lambda state: state | {QKR_INPUT: torch.ones(17)},
        "blocks.0.attn.input.step has the shape (17,), expected (18, 1)",
    ),
    "a row of zeros": (
        lambda state: _with(state, "blocks.1.mlp.fc2.weight", 3, 0.0),
        "blocks.1.mlp.fc2.weight has rows of zeros ([3]): StatsQ cannot code them",
    ),
    "a row of zeros in the product of q and k": (
        lambda state: _with(state, "blocks.1.attn.q.weight", (slice(None), 5), 0.0),
        f"blocks.1.attn.q.weight^T blocks.1.attn.k.weight has rows of zeros ([5, {DIM + 5}]): StatsQ cannot code them",
    ),
    "another clip value": (
        lambda state: state | {"blocks.0.mlp.fc1.statsq_fn.clip_val": torch.tensor([3.0])},
        "blocks.0.mlp.fc1.statsq_fn.clip_val is [3.0], expected 2: another quantizer trained this file",
    ),
    "LSQ weights": (
        lambda state: state | {"blocks.0.mlp.fc1.lsqw_fn.s": torch.ones(4 * DIM)},
        "the checkpoint has LSQ weights (mlp.fc1.lsqw_fn); only StatsQ checkpoints can be imported",
    ),
    "no steps yet": (
        without_steps,
        "the checkpoint lacks 20 tensors: patch_embed.proj.input_quant_fn.s, patch_embed.proj.lsqw_fn.s, "
        "head.input_quant_fn.s; it was saved before its steps were set: run one training step first",
    ),
    "a ResNet": (
        lambda _: {"conv1.weight": torch.ones(64, 3, 7, 7), "fc.weight": torch.ones(10, 64), "fc.bias": torch.ones(10)},
        "the checkpoint is no DeiT of OFQ's official code: cls_token should have 3 axes, it is missing",
    ),
    "a float DeiT": (
        lambda state: {name: value for name, value in state.items() if "quant" not in name and "move" not in name},
        "the checkpoint is not quantized by OFQ: blocks.0.attn has neither quant_x_4_qkv nor qkv.move_b4",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_tensors_that_cannot_be_imported_are_named(
    kind: str, refusal: Callable[..., str], mini: dict[str, Any]
) -> None:
    damage, message = DAMAGE[kind]

    assert refusal(mini | {"state_dict": damage(mini["state_dict"])}) == message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cls_token", ()),
        ("pos_embed", (5,)),
        ("patch_embed.proj.weight", (DIM,)),
        ("patch_embed.proj.input_quant_fn.signed", (0,)),
        ("head.bias", ()),
        ("head_dist.bias", (11,)),
        ("blocks.0.mlp.fc1.statsq_fn.clip_val", (3,)),
        ("blocks.0.mlp.fc1.weight", (DIM, 4 * DIM)),
        ("blocks.0.attn.move_qkx_aft.bias", (1,)),
    ],
)
def test_a_tensor_of_another_shape_is_named(name: str, shape: tuple[int, ...], mini: dict[str, Any]) -> None:
    """Also where it has as many values as the right one: a transposed weight is another weight."""
    _refuses(mini, name, shape, name)


def test_a_shape_that_tells_other_sizes_is_refused(mini: dict[str, Any]) -> None:
    _refuses(mini, "pos_embed", (1, 1, DIM), "no DeiT: 0 patches of width")
    _refuses(mini, "blocks.0.attn.move_qkx_b4.bias", (1,), "blocks.0.attn.z.before has the shape (1,)")


def _refuses(mini: dict[str, Any], name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)):
        _load(edited(mini, name, lambda _: torch.full(shape, 2.0)))


# Files that are no checkpoint.


def test_a_cut_file_is_refused(refusal: Callable[..., str], mini: dict[str, Any], tmp_path: Path) -> None:
    path = _save(mini, tmp_path / "cut.pth.tar")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    assert refusal(path).startswith(f"{path} is no whole torch checkpoint (")


@pytest.mark.parametrize("content", [b"", b"This is no checkpoint.\n" * 10, b"PK\x03\x04", b"\x80\x02."])
def test_a_file_of_another_kind_is_refused(content: bytes, refusal: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    message = refusal(path)

    assert message.startswith(f"{path} ")
    assert "list index out of range" not in message


def test_what_is_no_dictionary_of_tensors_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "file.pth.tar"

    assert refusal([torch.ones(2)]) == f"{path} holds a list, expected a dictionary of tensors"
    assert refusal({"epoch": 3}) == f"{path} holds no tensors"
    assert refusal(tmp_path / "absent.pth") == f"no checkpoint {tmp_path / 'absent.pth'}"
    assert refusal(tmp_path) == f"no checkpoint {tmp_path}"


class _Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _in_settings(content: dict[str, Any], payload: _Payload, path: Path) -> None:
    _save(content | {"args": argparse.Namespace(**vars(content["args"]), hook=payload)}, path)


def _as_tensor(content: dict[str, Any], payload: _Payload, path: Path) -> None:
    _save(content | {"state_dict": content["state_dict"] | {"cls_token": payload}}, path)


def _not_zipped_code(content: dict[str, Any], payload: _Payload, path: Path) -> None:
    torch.save(content | {"args": payload}, path, _use_new_zipfile_serialization=False)


def _plain_pickle(content: dict[str, Any], payload: _Payload, path: Path) -> None:
    path.write_bytes(pickle.dumps({"args": payload}, protocol=2))


CODE_REFUSED = "holds more than tensors and plain settings (posix.mkdir), and is refused unread"


@pytest.mark.parametrize("make", [_as_tensor, _not_zipped_code, _plain_pickle])
def test_code_in_a_checkpoint_does_not_run(
    make: Callable[[dict[str, Any], _Payload, Path], None],
    mini: dict[str, Any],
    refusal: Callable[..., str],
    tmp_path: Path,
) -> None:
    path, marker = tmp_path / "bad.pth.tar", tmp_path / "marker"
    make(mini, _Payload(marker), path)
    message = refusal(path)

    assert message.startswith(f"{path} {CODE_REFUSED}")
    assert "posix.mkdir" in message
    assert not marker.exists()


def test_the_command_does_not_run_code_in_a_checkpoint(mini: dict[str, Any], tmp_path: Path) -> None:
    path, marker = tmp_path / "bad.pth.tar", tmp_path / "marker"
    _in_settings(mini, _Payload(marker), path)
    before = _listing(tmp_path)
    message = _refused(_run("import", "bad.pth.tar", "-o", "run", cwd=tmp_path))

    assert message.startswith(f"bad.pth.tar {CODE_REFUSED}")
    assert not marker.exists()
    assert _listing(tmp_path) == before

    torch.load(path, weights_only=False)
    assert marker.is_dir()  # a reader that trusts the file does run it


def test_a_pickled_module_is_refused(refusal: Callable[..., str]) -> None:
    assert "is refused unread" in refusal(nn.Linear(2, 2))


def test_the_command_refuses_in_one_line(mini: dict[str, Any], tmp_path: Path) -> None:
    damage, message = DAMAGE["NaN"]
    _save(mini | {"state_dict": damage(mini["state_dict"])}, tmp_path / "bad.pth.tar")
    before = _listing(tmp_path)

    assert _refused(_run("import", "bad.pth.tar", cwd=tmp_path)) == message
    assert _listing(tmp_path) == before


def test_a_process_that_dies_while_reading_is_reported(tmp_path: Path) -> None:
    """Not through the same process: what the child wrote last is the reason."""
    path = _save({"state_dict": [1, 2]}, tmp_path / "odd.pth")
    message = _refused(_run("import", path, "-o", "run", cwd=tmp_path))

    assert message.startswith(f"{path} ")
    assert _listing(tmp_path) == {"odd.pth": sha256(path)}


# Golden data finds what differs.


@pytest.mark.parametrize(
    ("attention", "name", "layer", "rows"),
    [
        ("qkr", "blocks.0.attn.v.weight", "blocks.0.attn.v", [5]),
        ("qkr", "blocks.0.attn.proj.weight", "blocks.0.attn.proj", [5]),
        ("qkr", "blocks.0.mlp.fc2.weight", "blocks.0.mlp.fc2", [5]),
        ("qkr", "head.weight", "head", [5]),
        ("qkr", "head_dist.weight", "head_dist", [5]),
        ("qkr", "patch_embed.proj.weight", "patch_embed", [5]),
        ("qk", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv", [5]),
        ("qk", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1", [5]),
    ],
)
def test_one_negated_weight_row_is_named(attention: str, name: str, layer: str, rows: list[int]) -> None:
    file = checkpoint(attention, True, 4)
    result = _judge(edited(file, name, _negate_row), golden(file))
    faults = [fault for fault in result["faults"] if "weight codes" in fault]

    assert not result["passed"]
    assert len(faults) == 1
    assert faults[0].startswith(f"{layer}: ")
    assert faults[0].endswith(f" weight codes differ beyond a tie, in rows {rows}")


def _negate_row(weight: Tensor) -> Tensor:
    weight[5] = -weight[5]
    return weight


def test_a_negated_row_of_a_later_block_is_found_in_that_block(mini: dict[str, Any], mini_golden: Golden) -> None:
    result = _judge(edited(mini, "blocks.1.mlp.fc1.weight", _negate_row), mini_golden)

    assert [fault.split(":")[0] for fault in result["faults"]] == ["blocks.1"]


def test_the_command_exits_3_and_names_the_layer(
    mini: dict[str, Any], mini_golden: Golden, same_process: None, tmp_path: Path
) -> None:
    path = _save(edited(mini, "blocks.0.mlp.fc1.weight", _negate_row), tmp_path / "negated.pth.tar")
    api.import_checkpoint(path, output=tmp_path / "run")
    _save_golden(mini_golden, tmp_path / "golden.npz")
    done = _run("validate", "run", "--golden", "golden.npz", "--quiet", cwd=tmp_path)

    assert done.returncode == 3, done.stderr
    assert f"FAULT blocks.0.mlp.fc1: {DIM} weight codes differ beyond a tie, in rows [5]\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Not proven: ")


PARTS: dict[str, Callable[[str], bool]] = {
    "before the blocks": lambda name: name.startswith(("cls_token", "dist_token", "pos_embed", "patch_embed")),
    "block 0": lambda name: name.startswith("blocks.0."),
    "block 1": lambda name: name.startswith("blocks.1."),
    "after the blocks": lambda name: name.startswith(("norm", "head")),
}
WITHOUT_EFFECT = ("move_qkx_aft.bias", "move_k_aft.bias")  # the softmax cancels them


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("attention", ["qkr", "qk"])
def test_golden_data_notices_a_change_of_any_tensor(attention: str, part: str) -> None:
    file = checkpoint(attention, True, 4)
    expected = golden(file)
    names = [name for name in file["state_dict"] if PARTS[part](name) and not name.endswith("clip_val")]
    unnoticed = [name for name in names if _judge(edited(file, name, _disturb(name)), expected)["passed"]]

    assert unnoticed == [name for name in names if name.endswith(WITHOUT_EFFECT)]


def _disturb(name: str) -> Callable[[Tensor], Tensor]:
    if name.endswith("signed"):
        return torch.zeros_like
    return lambda value: value * 1.5 if name.endswith("_fn.s") else value * 1.5 + 0.3


# Golden files that cannot be compared.


def _half_of_a_file(path: Path, arrays: Golden) -> str:
    _save_golden(arrays, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return f"{path} is no whole .npz file ("


def _one_bit_changed(path: Path, arrays: Golden) -> str:
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    return f"{path} is no whole .npz file ("


def _pickled_objects(path: Path, arrays: Golden) -> str:
    marker = path.parent / "marker"
    np.savez(path, **arrays, note=np.array([_Payload(marker)], dtype=object))
    return f"{path} is no whole .npz file (Object arrays cannot be loaded"


def _a_single_array(path: Path, arrays: Golden) -> str:
    with path.open("wb") as file:
        np.save(file, arrays["blocks"])
    return f"{path} "


def _text(path: Path, _: Golden) -> str:
    path.write_text("no arrays\n" * 10)
    return f"{path} is no whole .npz file ("


def _no_blocks(path: Path, arrays: Golden) -> str:
    _save_golden({name: value for name, value in arrays.items() if name not in ("blocks", "images")}, path)
    return f"{path} lacks images, blocks; expected a golden file of OFQ's official code"


def _absent(path: Path, _: Golden) -> str:
    return f"no golden file {path}"


@pytest.mark.parametrize(
    "make", [_half_of_a_file, _one_bit_changed, _pickled_objects, _a_single_array, _text, _no_blocks, _absent]
)
def test_a_file_that_is_no_golden_data_is_refused(
    make: Callable[[Path, Golden], str], mini_golden: Golden, tmp_path: Path
) -> None:
    path = tmp_path / "golden.npz"
    start = make(path, mini_golden)
    with pytest.raises(DataError) as caught:
        load_golden(path)

    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("make", [_half_of_a_file, _pickled_objects])
def test_the_command_refuses_golden_data_in_one_line(
    make: Callable[[Path, Golden], str], typed: tuple[Path, Done], mini_golden: Golden, tmp_path: Path
) -> None:
    start = make(tmp_path / "golden.npz", mini_golden)
    done = _run("validate", "--golden", tmp_path / "golden.npz", "--quiet", "-o", tmp_path / "out", cwd=typed[0])

    assert _refused(done).startswith(start)
    assert not (tmp_path / "out").exists()


def _other_attention(_: Golden) -> Golden:
    return golden(checkpoint("qk", True, 4))


def _not_distilled(_: Golden) -> Golden:
    return golden(checkpoint("qkr", False, 4))


def _fewer_classes(arrays: Golden) -> Golden:
    heads = {name: arrays[name][:7] for name in arrays if name.endswith(("w_head", "w_head_dist"))}
    return arrays | heads | {"logits_f32": arrays["logits_f32"][:, :7]}


def _smaller_images(arrays: Golden) -> Golden:
    return arrays | {name: arrays[name][..., :16, :16] for name in ("images", "code_image")}


def _a_narrower_mlp(arrays: Golden) -> Golden:
    rows = {name: arrays[name][:DIM] for name in ("code_w_fc1", "step_w_fc1")}
    return arrays | rows | {name: arrays[name][..., :DIM] for name in ("code_fc2_in", "code_w_fc2")}


def _codes_without_their_step(arrays: Golden) -> Golden:
    return {name: value for name, value in arrays.items() if name != "step_w_fc1"}


@pytest.mark.parametrize(
    "change",
    [
        _other_attention,
        _not_distilled,
        _fewer_classes,
        _smaller_images,
        _a_narrower_mlp,
        _codes_without_their_step,
    ],
)
def test_golden_data_of_another_architecture_is_refused(
    change: Callable[[Golden], Golden], mini: dict[str, Any], mini_golden: Golden
) -> None:
    with pytest.raises(DataError) as caught:
        _judge(mini, change(mini_golden))

    assert "golden" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float64, np.str_])
def test_golden_codes_that_are_no_integers_are_refused(dtype: Any, mini: dict[str, Any], mini_golden: Golden) -> None:
    """Codes off by a fraction would be cut to the right ones."""
    codes = mini_golden["code_w_fc1"].astype(np.float64) + 0.4
    with pytest.raises(DataError, match="code_w_fc1"):
        _judge(mini, mini_golden | {"code_w_fc1": codes.astype(dtype)})


@pytest.mark.parametrize("name", ["blocks", "images", "logits_f32", "step_w_proj"])
def test_golden_values_that_are_not_finite_are_refused(name: str, mini: dict[str, Any], mini_golden: Golden) -> None:
    values = mini_golden[name].copy()
    values.reshape(-1)[5] = np.nan

    with pytest.raises(DataError, match=name):
        _judge(mini, mini_golden | {name: values})


def test_golden_codes_out_of_range_do_not_wrap_around(mini: dict[str, Any], mini_golden: Golden) -> None:
    with pytest.raises(DataError, match="code_x"):
        _judge(mini, mini_golden | {"code_x": mini_golden["code_x"].astype(np.int64) + 65536})


def test_golden_data_without_weight_codes_compares_nothing(mini: dict[str, Any], mini_golden: Golden) -> None:
    with pytest.raises(DataError, match="no weight codes"):
        _judge(mini, {name: values for name, values in mini_golden.items() if not name.startswith("code_w")})


def test_every_block_has_a_verdict(mini: dict[str, Any], mini_golden: Golden) -> None:
    first, second = _judge(mini, mini_golden)["blocks"]

    assert {first["verdict"], second["verdict"]} <= {"equal", "equal after flips"}
    assert first["codes_equal"] + first["ties"] == first["codes_compared"] > 0 == second["codes_compared"]


# The files made with the official code.


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The official DeiT-T as a run, and what the comparison with its golden data said."""
    cwd = tmp_path_factory.mktemp("official")
    _ok(_run("import", real(CHECKPOINT), cwd=cwd))
    done = _ok(_run("validate", "runs/deit_t_w4a4_qkr", "--golden", real(GOLDEN), "--json", "--quiet", cwd=cwd))
    return cwd / "runs" / "deit_t_w4a4_qkr", json.loads(done.stdout)


def test_the_official_checkpoint_computes_what_the_official_code_did(official: tuple[Path, dict[str, Any]]) -> None:
    result = official[1]

    assert (result["passed"], result["faults"]) == (True, [])
    assert [row["block"] for row in result["blocks"]] == [f"blocks.{index}" for index in range(12)]
    assert max(row["max_error"] for row in result["blocks"]) <= 5e-6
    assert sum(row["differing"] for row in result["weights"]) == 0
    assert sum(row["compared"] for row in result["weights"]) == 1_010_688
    assert result["same_prediction"] == result["images"] == 2


def test_the_official_checkpoint_brings_imagenets_labels(official: tuple[Path, dict[str, Any]]) -> None:
    frozen = load_frozen(official[0] / "frozen.safetensors")
    a = sizes(frozen)

    assert (a.image_size, a.patch_size, a.tokens, a.dim, a.heads, a.depth) == (224, 16, 198, 192, 3, 12)
    assert (len(frozen.labels), frozen.labels[0]) == (1000, "tench")
    assert (frozen.quantization.weight_bits, frozen.quantization.act_bits) == (4, 4)


def test_the_small_models_formulas_are_those_of_the_official_code() -> None:
    """Codes of block 0 and all weights, but for the few that a float32 sum in another order moves."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        file = torch.load(real(CHECKPOINT), weights_only=True)
    with np.load(real(GOLDEN)) as arrays:
        ours = golden(file, torch.from_numpy(arrays["images"]))
        keys = [name for name in ours if name.startswith(("code_", "step_")) and "head" not in name]
        shares = {name: float((ours[name] != arrays[name]).mean()) for name in keys}

    assert {name: share for name, share in shares.items() if share > 2e-4} == {}
