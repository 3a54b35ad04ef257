"""The commands as they are typed: results, exit codes, one-line errors, nothing half-written."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from ofq_deploy import api, cli, demo
from ofq_deploy.commands import validate as validation
from ofq_deploy.commands.requests import DemoRequest
from ofq_deploy.data.datasets import load_dataset
from ofq_deploy.files import sha256
from ofq_deploy.model.file import OnnxFile, read_model
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import load_recipe, override
from ofq_deploy.results.kinds import decode
from ofq_deploy.results.models import DemoResult

COMMANDS = [
    "demo",
    "train",
    "import",
    "export",
    "validate",
    "parity",
    "predict",
    "package",
    "bench",
    "report",
    "lint",
    "check",
    "inspect",
    "doctor",
]
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "timm", "onnx_ir", "sklearn", "matplotlib", "scipy", "PIL"}
ENVIRONMENT = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
Done = subprocess.CompletedProcess[str]


def _run(*arguments: object, cwd: Path, environment: dict[str, str] | None = None, limit: int | None = None) -> Done:
    """Run ofq-deploy in a process of its own; `limit` is the largest file, in bytes, that it may write."""

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # type: ignore[arg-type]

    command = [sys.executable, "-m", "ofq_deploy", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=ENVIRONMENT | (environment or {}),
        capture_output=True,
        text=True,
        preexec_fn=set_limit if limit else None,
    )


def _run_code(code: str, arguments: Sequence[object], cwd: Path) -> Done:
    """Run the command line in a process that executes `code` before and after it."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


def _ok(done: Done) -> Done:
    assert done.returncode == 0, done.stderr
    return done


def _refused(done: Done, exit_code: int = 2) -> str:
    """The one line that a refused command wrote."""
    assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("ofq-deploy: ")
    return lines[0].removeprefix("ofq-deploy: ")


def _listing(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash, but for the cache of teachers."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".teachers" not in path.parts)
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def _options(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def run_copy(tiny_run: Path, portable_model: Path, tmp_path: Path) -> Path:
    """runs/tiny with its portable model, below tmp_path; free to be changed."""
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("model.*"))
    shutil.copyfile(portable_model, folder / portable_model.name)
    return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> tuple[Path, dict[str, Done]]:
    """The whole way as a user types it: a working folder, and what each command answered."""
    cwd = tmp_path_factory.mktemp("workshop")
    steps: dict[str, list[object]] = {
        "train": ["train", *_options(tiny_settings)],
        "export fp32": ["export", "--to", "onnx", "--target", "fp32"],
        "export ort-cpu": ["export", "--to", "onnx", "--target", "ort-cpu"],
        "export": ["export", "--to", "onnx"],
        "validate": ["validate"],
        "bench": ["bench", "--backend", "ort-cpu", "--seconds", "0.1"],
        "inspect": ["inspect"],
        "doctor": ["doctor"],
    }
    return cwd, {name: _ok(_run(*step, cwd=cwd)) for name, step in steps.items()}


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_the_common_options(command: str, tmp_path: Path) -> None:
    text = _ok(_run(command, "--help", cwd=tmp_path)).stdout

    assert f"Example: ofq-deploy {command}" in " ".join(text.split())
    missing = [option for option in ("-o", "--output", "--force", "--json", "--quiet") if option not in text]
    assert missing == []


def test_help_tells_the_defaults_that_are_no_plain_value(tmp_path: Path) -> None:
    text = " ".join(_ok(_run("bench", "--help", cwd=tmp_path)).stdout.split())

    for default in ("the newest run", "1", "the run's float model", "all that are allowed"):
        assert f"[default: {default}]" in text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ofq_deploy.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code in (0, None), end.code\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "raise SystemExit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = _run_code(code, arguments, tmp_path)

    assert done.returncode == 0, done.stderr


def test_help_lists_every_command(tmp_path: Path) -> None:
    text = _ok(_run("--help", cwd=tmp_path, environment={"COLUMNS": "80"})).stdout

    assert [name for name in COMMANDS if f"\n  {name} " not in text] == []
    assert "..." not in text.partition("Commands:")[2]  # no summary is cut, at 80 columns


# The whole way.


def test_train_leaves_a_run_folder_and_prints_its_path(workshop: tuple[Path, dict[str, Done]]) -> None:
    cwd, done = workshop

    assert done["train"].stdout == "runs/digits-w4a4\n"
    names = {path.name for path in (cwd / "runs" / "digits-w4a4").iterdir()}
    assert {"recipe.toml", "metrics.jsonl", "weights.safetensors", "frozen.safetensors", "manifest.json"} <= names
    assert "training the float teacher" in done["train"].stderr


@pytest.mark.parametrize(
    ("step", "target"), [("export", "portable"), ("export ort-cpu", "ort-cpu"), ("export fp32", "fp32")]
)
def test_export_prints_the_path_of_its_model(step: str, target: str, workshop: tuple[Path, dict[str, Done]]) -> None:
    cwd, done = workshop
    path = f"runs/digits-w4a4/model.{target}.onnx"
    properties = {entry.key: entry.value for entry in onnx.load(cwd / path).metadata_props}
    frozen = sha256(cwd / "runs" / "digits-w4a4" / "frozen.safetensors")

    assert done[step].stdout == f"{path}\n"
    assert f"{(cwd / path).stat().st_size:,} bytes" in done[step].stderr
    assert properties["ofq_deploy.target"] == target
    assert properties["ofq_deploy.frozen_sha256"] == ("" if target == "fp32" else frozen)


def test_validate_proves_the_newest_model(workshop: tuple[Path, dict[str, Done]]) -> None:
    lines = workshop[1]["validate"].stdout.splitlines()

    assert lines[0] == "runs/digits-w4a4/model.portable.onnx (portable) on 360 test images of digits"
    assert re.fullmatch(r"input: 16 bilinear, crop 16, 1 channels; first batch sha256 [0-9a-f]{16}", lines[1])
    assert re.fullmatch(r"weights: 0 of [\d,]+ stored codes differ; 0 of [\d,]+ other constants", lines[2])
    assert lines[-1].startswith("Proven: the model computes what training computed; ")


def test_bench_measures_the_newest_model_beside_float(workshop: tuple[Path, dict[str, Done]]) -> None:
    text = workshop[1]["bench"].stdout

    assert re.search(r"^model runs/digits-w4a4/model\.portable\.onnx: [\d,]+ bytes", text, re.MULTILINE)
    assert re.search(r"^baseline the run's float model: [\d,]+ bytes", text, re.MULTILINE)


def test_inspect_lists_every_layer(workshop: tuple[Path, dict[str, Done]]) -> None:
    text = workshop[1]["inspect"].stdout
    layers = ["patch_embed", "head", "head_dist"]
    layers += [f"blocks.{index}.{part}" for index in (0, 1) for part in ("attn.z", "attn.v", "attn.proj")]
    layers += [f"blocks.{index}.mlp.{part}" for index in (0, 1) for part in ("fc1", "fc2")]

    assert [name for name in layers if name not in text] == []


def test_doctor_lists_backends(workshop: tuple[Path, dict[str, Done]]) -> None:
    text = workshop[1]["doctor"].stdout

    assert "backend ort-cpu: ready" in text
    assert {"openvino", "tensorrt", "tensorrt-rtx"} <= set(re.findall(r"^backend ([\w-]+):", text, re.MULTILINE))


# --json, --quiet, -o, --force.


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    """A PNG of one scanned digit of the test split."""
    return _write_digit(tmp_path / "digit.png", 3)


def _write_digit(path: Path, test_index: int) -> Path:
    split = json.loads((Path(api.__file__).parent / "data" / "digits_split.json").read_text())
    pixels = load_digits().images[split["test"][test_index]]
    Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).save(path)
    return path


def _digit_folder(root: Path, indices: Iterable[int]) -> Path:
    """Digits of the test split as a folder with all ten classes."""
    classes = load_dataset("digits", 16).test.classes
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
    for index in indices:
        _write_digit(root / str(classes[index]) / f"{index}.png", int(index))
    return root


RESULT_KEYS = {
    "export": {"model", "target", "file_bytes", "form", "faster_form"},
    "predict": {"predictions"},
    "validate": {"passed", "faults", "model", "weights", "operators", "free_run", "top1_runtime", "top1_torch"},
    "bench": {"model", "baseline", "speedup", "environment", "backend"},
    "inspect": {"model", "layers", "file_bytes", "bytes_by_kind", "target", "quantization"},
    "doctor": {"environment", "cpu", "backends"},
}


def _arguments(command: str, run: Path, image: Path) -> list[object]:
    words: dict[str, list[object]] = {
        "export": ["export", run],
        "predict": ["predict", image, "--model", run],
        "validate": ["validate", run, "--images", 2],
        "bench": ["bench", run, "--seconds", 0],
        "inspect": ["inspect", run],
        "doctor": ["doctor"],
    }
    return words[command]


@pytest.mark.parametrize("command", ["predict", "validate", "bench", "inspect", "doctor"])
def test_json_quiet_and_output(command: str, run_copy: Path, digit: Path, tmp_path: Path) -> None:
    arguments = _arguments(command, run_copy, digit)
    if command == "validate":
        arguments += ["--data", _digit_folder(tmp_path / "data", range(3))]
    file = tmp_path / "result.json"
    done = _ok(_run(*arguments, "--json", "--quiet", "-o", file, cwd=tmp_path))
    result = json.loads(done.stdout)

    assert RESULT_KEYS[command] <= set(result)
    assert result == json.loads(file.read_text())
    assert done.stderr == ""

    file.write_text("mine")
    before = _listing(tmp_path)
    message = _refused(_run(*arguments, "--json", "-o", file, cwd=tmp_path))

    assert message == f"{file} exists already; pass --force to replace it or -o for another place"
    assert _listing(tmp_path) == before

    if command != "validate":  # the same code, and slow
        _ok(_run(*arguments, "--json", "--force", "-o", file, cwd=tmp_path))
        assert RESULT_KEYS[command] <= set(json.loads(file.read_text()))


def test_export_json_quiet_output_and_force(run_copy: Path, portable_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "made" / "my.onnx"
    done = _ok(_run("export", run_copy, "--json", "--quiet", "-o", file, cwd=tmp_path))

    expected = {"model": str(file), "target": "portable", "file_bytes": file.stat().st_size}
    expected |= {
        "form": "QKR, a step per token, shifts",
        "faster_form": "--attention qk --act-step tensor: 1.3 to 1.5 times as fast",
    }
    assert expected.items() <= json.loads(done.stdout).items()
    assert done.stderr == ""
    assert file.read_bytes() == portable_model.read_bytes()

    file.write_text("mine")
    message = _refused(_run("export", run_copy, "-o", file, cwd=tmp_path))

    assert message == f"{file} exists already; pass --force to replace it or -o for another place"
    assert file.read_text() == "mine"

    _ok(_run("export", run_copy, "--force", "-o", file, cwd=tmp_path))
    assert file.read_bytes() == portable_model.read_bytes()


def test_train_json_quiet_output_and_force(tmp_path: Path, tiny_settings: dict[str, Any]) -> None:
    options = _options(tiny_settings | {"teacher.epochs": 0, "train.epochs": 0, "cga.epochs": 0})
    run = tmp_path / "mine"
    run.mkdir()
    (run / "manifest.json").write_text("{}")
    (run / "note").write_text("mine")
    message = _refused(_run("train", *options, "-o", run, cwd=tmp_path))

    assert message == f"{run} exists already; pass --force to replace it or -o for another place"
    assert sorted(path.name for path in run.iterdir()) == ["manifest.json", "note"]

    done = _ok(_run("train", *options, "-o", run, "--force", "--json", "--quiet", cwd=tmp_path))
    result = json.loads(done.stdout)

    assert done.stderr == ""
    assert {"run", "teacher_test_top1", "validation_top1", "test_top1"} <= set(result)
    assert result["run"] == str(run)
    assert (run / "manifest.json").is_file()
    assert not (run / "note").exists()


@pytest.mark.parametrize("command", ["inspect", "doctor", "predict"])
def test_quiet_keeps_the_result(command: str, run_copy: Path, digit: Path, tmp_path: Path) -> None:
    done = _ok(_run(*_arguments(command, run_copy, digit), "--quiet", cwd=tmp_path))

    assert done.stderr == ""
    assert done.stdout != ""


# Predict.


def test_predict_answers_as_onnxruntime_does(
    run_copy: Path, portable_model: Path, ort_model: Path, tmp_path: Path
) -> None:
    import onnxruntime

    indices = [0, 7, 200]
    images = [_write_digit(tmp_path / f"{index}.png", index) for index in indices]
    arrays = load_dataset("digits", 16).test.images(np.asarray(indices))
    for model in (portable_model, ort_model):
        done = _ok(_run("predict", *images, "--model", model, "--json", cwd=tmp_path))
        rows = json.loads(done.stdout)["predictions"]
        logits = onnxruntime.InferenceSession(str(model)).run(["logits"], {"image": arrays})[0].astype(np.float64)
        expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

        assert [row["image"] for row in rows] == list(map(str, images))
        assert [row["top5"][0]["label"] for row in rows] == [str(label) for label in expected.argmax(-1)]
        for row, probabilities in zip(rows, expected, strict=True):
            found = [best["probability"] for best in row["top5"]]
            assert len(found) == 5
            assert found == sorted(found, reverse=True)
            np.testing.assert_allclose(found, np.sort(probabilities)[::-1][:5], atol=2e-6)


def test_predict_takes_colour_and_large_images(run_copy: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.jpg")
    done = _ok(_run("predict", tmp_path / "colour.jpg", cwd=tmp_path))

    assert done.stdout.startswith(f"{tmp_path / 'colour.jpg'}: ")


CHECK_TORCH = (
    "import sys\nfrom ofq_deploy.cli import main\n"
    "try: main()\nexcept SystemExit as end: assert end.code in (0, None), end.code\n"
    "found = sorted({'torch', 'timm', 'torchvision'} & set(sys.modules))\n"
    "raise SystemExit(f'imported {found}' if found else 0)"
)


@pytest.mark.parametrize("command", ["predict", "inspect", "bench", "export", "doctor"])
def test_nothing_but_training_and_proof_imports_torch(
    command: str, run_copy: Path, digit: Path, tmp_path: Path
) -> None:
    done = _run_code(CHECK_TORCH, [*_arguments(command, run_copy, digit), "--force"], tmp_path)

    assert done.returncode == 0, done.stderr


def test_validate_against_a_frozen_file_alone_needs_no_torch(run_copy: Path, tmp_path: Path) -> None:
    frozen, model = run_copy / "frozen.safetensors", tmp_path / "model.onnx"
    shutil.copyfile(run_copy / "model.portable.onnx", model)
    (tmp_path / "alone").mkdir()
    shutil.copyfile(frozen, tmp_path / "alone" / "frozen.safetensors")
    arguments = ["validate", model, "--run", tmp_path / "alone" / "frozen.safetensors", "--data", "digits"]
    result = json.loads(_ok(_run_code(CHECK_TORCH, [*arguments, "--images", 1, "--json"], tmp_path)).stdout)

    assert result["passed"]
    assert "top1_torch" not in result


# Exit code 2: bad input, one line, nothing written.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "train.epoch=1"], "unknown recipe key 'train.epoch'; the nearest known key is 'train.epochs'"),
        (["--weight-bits", 1], "quantization.weight_bits is 1; quantizers exist for 2 to 8 bits"),
        (["--weight-bits", 9], "quantization.weight_bits is 9; quantizers exist for 2 to 8 bits"),
        (["--act-bits", 1], "quantization.act_bits is 1; quantizers exist for 2 to 8 bits"),
        (["--act-bits", 9], "quantization.act_bits is 9; quantizers exist for 2 to 8 bits"),
        (["--attention", "both"], "recipe key 'quantization.attention' is 'both'; it takes 'qkr' or 'qk'"),
        (["--set", "train.lr=nan"], "recipe key 'train.lr' is nan; it takes a finite number from 0 up"),
        (
            ["digits-w1a1"],
            "no recipe 'digits-w1a1'; built in: digits-w2a2, digits-w4a4, finetune; or give a .toml file",
        ),
        (["absent.toml"], "cannot read recipe absent.toml: No such file or directory"),
        (["--device", "tpu"], "no device 'tpu'; there are auto, cpu and cuda"),
        (
            ["--data", "absent"],
            "no data set 'absent': it is neither 'digits', nor a folder of images, nor a .csv or .parquet file, nor hf:NAME",
        ),
        (["--data", "empty"], "HERE/empty holds no images; expected one folder of images per class"),
        (["-o", "file"], "file exists already; pass --force to replace it or -o for another place"),
    ],
)
def test_train_refuses(arguments: list[object], expected: str, tmp_path: Path) -> None:
    (tmp_path / "empty" / "zero").mkdir(parents=True)
    (tmp_path / "file").write_text("kept")

    assert _refused(_run("train", *arguments, cwd=tmp_path)) == expected.replace("HERE", str(tmp_path.resolve()))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--set", "nokey"],
        ["train", "--weight-bits", "four"],
        ["train", "--seed", "-1"],
        ["bench", "--batch", "0"],
        ["predict"],
        ["export", "--nonsense"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_too(arguments: list[str], tmp_path: Path) -> None:
    _refused(_run(*arguments, cwd=tmp_path))


def _broken_image_folder(root: Path) -> Path:
    """Two classes; one of the images is cut."""
    for index, label in enumerate(["0", "1"]):
        (root / label).mkdir(parents=True)
        for number in range(2):
            _write_digit(root / label / f"{number}.png", 2 * index + number)
    broken = root / "1" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    return broken


def test_train_names_a_broken_image_and_leaves_nothing(tmp_path: Path, tiny_settings: dict[str, Any]) -> None:
    broken = _broken_image_folder(tmp_path / "data" / "train")
    _broken_image_folder(tmp_path / "data" / "val")
    done = _run("train", "--data", "data", "--quiet", *_options(tiny_settings), "-o", "made/run", cwd=tmp_path)
    message = _refused(done)

    assert message.startswith(f"{broken.resolve()} is not a readable image (")
    assert message.endswith("); remove or replace it")
    assert [path for path in (tmp_path / "made").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "made" / "run").exists()


def test_validate_names_a_broken_image(run_copy: Path, tmp_path: Path) -> None:
    broken = _broken_image_folder(tmp_path / "data")
    message = _refused(_run("validate", run_copy, "--data", tmp_path / "data", "--quiet", cwd=tmp_path))

    assert message.startswith(f"{broken} is not a readable image (")


def test_without_a_run_every_command_says_how_to_make_one(digit: Path, tmp_path: Path) -> None:
    for command in (["export"], ["validate"], ["bench"], ["inspect"], ["predict", digit]):
        assert _refused(_run(*command, cwd=tmp_path)) == "no run under runs/; make one with: ofq-deploy train"


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
@pytest.mark.parametrize("name", ["frozen.safetensors", "weights.safetensors"])
def test_a_damaged_run_is_refused(damage: str, name: str, run_copy: Path, tmp_path: Path) -> None:
    file = run_copy / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
        expected = f"runs/tiny lacks {name}; train again or restore the file"
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
        expected = (
            f"runs/tiny/{name} is not the file that manifest.json names (sha256 differs); train again or restore it"
        )
    before = _listing(tmp_path)

    assert _refused(_run("export", "runs/tiny", "-o", "new.onnx", cwd=tmp_path)) == expected
    assert _listing(tmp_path) == before


def test_validate_refuses_a_damaged_run_beside_the_model(run_copy: Path, tmp_path: Path) -> None:
    weights = run_copy / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = _refused(_run("validate", run_copy / "model.portable.onnx", cwd=tmp_path))

    assert message.startswith(f"{weights} is not the file that manifest.json names")


def test_export_refuses_what_does_not_exist(run_copy: Path, tmp_path: Path) -> None:
    absent = "absent is no run folder: it has no manifest.json; make one with: ofq-deploy train -o absent"

    assert _refused(_run("export", "absent", cwd=tmp_path)) == absent
    assert _refused(_run("export", "--to", "tflite", cwd=tmp_path)) == "no format 'tflite'; there is onnx"
    assert _refused(_run("export", "--target", "tpu", cwd=tmp_path)) == (
        "no target 'tpu'; there are portable, ort-cpu, ort-ofq, openvino, tensorrt, fp32"
    )
    for opset in (1, 19, 27, 999):
        message = _refused(_run("export", "--opset", opset, "-o", "x.onnx", cwd=tmp_path))
        assert message == f"opset {opset} cannot hold the graph; use 20 to 26"
    assert not (tmp_path / "x.onnx").exists()


def _foreign(path: Path, _: bytes) -> str:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "foreign",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), path)
    return f"{path} was not written by ofq-deploy export ("


def _halved(path: Path, model: bytes) -> str:
    path.write_bytes(model[: len(model) // 2])
    return f"{path} is no ONNX file, or is cut ("


def _text(path: Path, _: bytes) -> str:
    path.write_text("This is no model.\n" * 10)
    return f"{path} is no ONNX file, or is cut ("


def _empty(path: Path, _: bytes) -> str:
    path.touch()
    return f"{path} holds no ONNX graph; export it again"


def _absent(path: Path, _: bytes) -> str:
    return f"no model {path}; make one with: ofq-deploy export --to onnx"


def _hollow(path: Path, model: bytes) -> str:
    """Metadata intact, a constant gone: it parses, and no runtime loads it."""
    proto = onnx.load_from_string(model)
    del proto.graph.initializer[-1]
    onnx.save(proto, path)
    return ""


@pytest.mark.parametrize("make", [_foreign, _halved, _text, _empty, _absent, _hollow])
@pytest.mark.parametrize("command", ["predict", "validate", "bench", "inspect"])
def test_a_file_that_is_no_model_of_ours_is_refused(
    command: str, make: Callable[[Path, bytes], str], run_copy: Path, digit: Path, tmp_path: Path
) -> None:
    if (command, make) == ("inspect", _hollow):
        pytest.skip("inspect reads tables, it opens no session")
    path = tmp_path / "model.onnx"
    start = make(path, (run_copy / "model.portable.onnx").read_bytes())
    if (command, make) == ("bench", _foreign):  # it measures models from elsewhere, but they must take images
        start = "the model takes x [0]; expected one float input [batch, channels, height, width]"
    before = _listing(tmp_path)
    message = _refused(_run(*_arguments(command, path, digit), "--quiet", "-o", "result.json", cwd=tmp_path))

    assert message.startswith(start)
    assert _listing(tmp_path) == before


@pytest.mark.parametrize("make", [_text, _absent])
def test_bench_refuses_a_baseline_that_is_no_model(
    make: Callable[[Path, bytes], str], run_copy: Path, tmp_path: Path
) -> None:
    start = make(tmp_path / "base.onnx", b"")
    done = _run("bench", run_copy, "--baseline", tmp_path / "base.onnx", "--seconds", 0, cwd=tmp_path)

    assert _refused(done).startswith(start)


def test_a_model_of_another_run_is_refused(run_copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes((run_copy / "frozen.safetensors").read_bytes())
    model = run_copy / "model.portable.onnx"
    proto = read_model(model)
    for entry in proto.metadata_props:
        if entry.key == "ofq_deploy.frozen_sha256":
            entry.value = "0" * 64
    onnx.save(proto, model)

    assert _refused(_run("validate", model, "--run", other, cwd=tmp_path)) == (
        f"{model} was not exported from {other} (its metadata names another hash); pass the right --run"
    )
    assert _refused(_run("validate", model, cwd=tmp_path)) == (
        f"no frozen file with the hash that {model} names was found beside it or under runs/; pass it with --run"
    )


def test_predict_refuses_what_is_no_image(run_copy: Path, digit: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(digit.read_bytes()[:40])

    assert _refused(_run("predict", "absent.png", cwd=tmp_path)) == "no image absent.png"
    for name in ("text.png", "cut.png", "runs"):
        message = _refused(_run("predict", name, cwd=tmp_path))
        assert message.startswith(f"{name} is not a readable image (")
        assert message.endswith("); remove or replace it")


def test_an_unknown_backend_is_refused(run_copy: Path, tmp_path: Path) -> None:
    refused = {command: _refused(_run(command, "--backend", "gpu", cwd=tmp_path)) for command in ("validate", "bench")}

    assert refused == {
        "validate": "no backend 'gpu'; there are ort-cpu, openvino, tensorrt",
        "bench": "no backend 'gpu'; there are ort-cpu, openvino, tensorrt, torch-cuda",
    }


@pytest.mark.parametrize("command", ["export", "inspect", "doctor", "train", "demo"])
def test_an_output_below_a_regular_file_is_refused(command: str, run_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    before = _listing(tmp_path)
    message = _refused(_run(command, "-o", "file/below", "--quiet", cwd=tmp_path))

    assert message.startswith("cannot write file/below: ")
    assert _listing(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(run_copy: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)

    assert _refused(_run("export", "-o", "closed/model.onnx", cwd=tmp_path)) == (
        "cannot write closed/model.onnx: Permission denied; choose another place with -o"
    )
    assert _listing(closed) == {}


def test_export_to_a_full_disk_leaves_nothing(run_copy: Path, tmp_path: Path) -> None:
    """The operating system refuses the write half-way, as it does on a full disk."""
    before = _listing(tmp_path)
    message = _refused(_run("export", "-o", "new.onnx", cwd=tmp_path, limit=50_000))

    assert message == "cannot write new.onnx: File too large; choose another place with -o"
    assert _listing(tmp_path) == before


@pytest.mark.parametrize("limit", [300_000, 430_000], ids=["the teacher", "the student"])
def test_train_on_a_full_disk_leaves_nothing(limit: int, tmp_path: Path, tiny_settings: dict[str, Any]) -> None:
    options = _options(tiny_settings | {"teacher.epochs": 0, "train.epochs": 0, "cga.epochs": 0})
    message = _refused(_run("train", *options, "--quiet", "-o", "run", cwd=tmp_path, limit=limit))

    assert message.startswith("cannot write ")
    assert _listing(tmp_path) == {}


# Exit code 3: it ran, and the verdict is negative.


def test_validate_finds_one_changed_code(run_copy: Path, tmp_path: Path) -> None:
    model = run_copy / "model.portable.onnx"
    proto = read_model(model)
    tensor = next(t for t in proto.graph.initializer if t.name == "blocks.1.mlp.fc2.weight.codes")
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    onnx.save(proto, model)
    done = _run("validate", model, "--data", _digit_folder(tmp_path / "data", [0, 1]), "--json", cwd=tmp_path)
    result = json.loads(done.stdout)

    assert done.returncode == 3, done.stderr
    assert not result["passed"]
    assert result["weights"]["codes_differing"] == 1
    assert "blocks.1.mlp.fc2.weight: stored codes differ from the frozen ones" in result["faults"]


def test_validate_compares_the_drop_with_the_gate(run_copy: Path, tiny_run: Path, tmp_path: Path) -> None:
    """On images that the float model gets right, one of them wrong after quantization, the drop is positive."""
    from ofq_deploy.runtime_tests.proof.accuracy import measure_accuracy

    fp32 = api.export(tiny_run, target="fp32", output=tmp_path / "fp32.onnx")
    split = load_dataset("digits", 16).test
    floats = measure_accuracy(OnnxFile(fp32), split, Reporter()).predictions == split.classes
    codes = measure_accuracy(OnnxFile(run_copy / "model.portable.onnx"), split, Reporter()).predictions == split.classes
    _digit_folder(tmp_path / "data", np.flatnonzero(floats & ~codes)[:2])
    done = _run("validate", run_copy, "--data", tmp_path / "data", "--max-drop", "99.5", "--json", cwd=tmp_path)
    allowed = _run("validate", run_copy, "--data", tmp_path / "data", "--max-drop", "100", "--json", cwd=tmp_path)

    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["faults"] == ["top-1 drops by 100.00 points, allowed are 99.5"]
    assert json.loads(done.stdout)["drop_points"] == 100
    assert allowed.returncode == 0, allowed.stderr
    assert json.loads(allowed.stdout)["passed"]


def test_classes_of_a_folder_are_matched_by_their_names(run_copy: Path, tiny_run: Path, tmp_path: Path) -> None:
    """A folder that lacks some classes: its first class is not the model's first."""
    from ofq_deploy.runtime_tests.proof.accuracy import measure_accuracy

    model, split = run_copy / "model.portable.onnx", load_dataset("digits", 16).test
    predictions = measure_accuracy(OnnxFile(model), split, Reporter()).predictions
    right = np.flatnonzero((predictions == split.classes) & (split.classes > 0))
    index = int(right[0])
    (tmp_path / "data" / str(split.classes[index])).mkdir(parents=True)
    _write_digit(tmp_path / "data" / str(split.classes[index]) / "one.png", index)
    result = api.validate(model, data=str(tmp_path / "data"), images=1)

    assert result["top1_runtime"] == 100


# Exit code 4: a backend is missing.


def _without_onnxruntime(folder: Path) -> dict[str, str]:
    """An environment in which neither this process nor its children can import onnxruntime."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize("command", ["predict", "validate", "bench", "export"])
def test_without_onnxruntime_the_message_says_what_to_install(
    command: str, run_copy: Path, digit: Path, tmp_path: Path
) -> None:
    arguments = [*_arguments(command, run_copy, digit), "--quiet", "-o", tmp_path / "new"]
    done = _run(*arguments, cwd=tmp_path, environment=_without_onnxruntime(tmp_path / "absent"))

    assert _refused(done, 4) == "onnxruntime is not installed; install it with: pip install onnxruntime"
    assert not (tmp_path / "new").exists()


def test_without_onnxruntime_doctor_says_what_to_install(tmp_path: Path) -> None:
    done = _ok(_run("doctor", "--json", cwd=tmp_path, environment=_without_onnxruntime(tmp_path / "absent")))

    assert json.loads(done.stdout)["backends"]["ort-cpu"] == {
        "ready": False,
        "why": "package onnxruntime is not installed",
        "install": "pip install onnxruntime",
    }


# The demo.


@pytest.fixture(scope="module")
def small_demo(
    tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]
) -> Iterator[tuple[Path, DemoResult]]:
    """The demo with recipes that train for one epoch."""
    output = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_recipe", lambda name: override(load_recipe(name), tiny_settings))
        patch.setattr(demo, "BENCH_SECONDS", 0.0)
        patch.setattr(validation, "FREE_RUN_BUDGET", 0.0)
        yield output, demo.run_demo(DemoRequest(output=output), Reporter())


def test_the_summary_has_every_promised_field(small_demo: tuple[Path, DemoResult]) -> None:
    output, returned = small_demo
    summary = json.loads((output / "summary.json").read_text())
    needed = ["name", "weight_bits", "act_bits", "top1_torch", "top1_runtime", "agreement", "codes_compared"]
    needed += ["codes_differing", "ties", "file_bytes", "latency_ms_p50", "model"]

    assert decode(summary) == returned
    assert {"environment", "models"} <= set(summary)
    assert [(m["name"], m["weight_bits"], m["act_bits"]) for m in summary["models"]] == [
        ("digits-w4a4", 4, 4),
        ("digits-w2a2", 2, 2),
    ]
    for model in summary["models"]:
        assert [key for key in needed if key not in model] == []
        assert not Path(model["model"]).is_absolute()
        assert (output / model["model"]).stat().st_size == model["file_bytes"]
        assert model["latency_ms_p50"] > 0
        assert 0 <= model["agreement"] <= 100
        assert model["ties"] <= model["codes_differing"] <= model["codes_compared"]


def test_the_report_is_self_contained_and_names_both_models(small_demo: tuple[Path, DemoResult]) -> None:
    text = (small_demo[0] / "report.html").read_text()
    loads = re.findall(r"""(?:src|href|data|action)\s*=\s*["']\s*(?!\#)([^"']+)""", text)
    loads += re.findall(r"url\(\s*[\"']?(?!\#)([^)]+)", text) + re.findall(r"@import[^;]+", text)
    loads += re.findall(r"<(?:script|link|iframe|object|embed|img)\b[^>]*>", text)

    assert loads == []
    assert "digits-w4a4" in text
    assert "digits-w2a2" in text
    assert text.startswith("<!doctype html>")


def test_the_demo_leaves_two_runs_and_no_temporary_paths(small_demo: tuple[Path, DemoResult]) -> None:
    output = small_demo[0]

    assert {"digits-w4a4", "digits-w2a2", "report.html", "summary.json"} <= {path.name for path in output.iterdir()}
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert ".part" not in (output / "summary.json").read_text() + (output / "report.html").read_text()


def test_the_demo_refuses_an_existing_folder(small_demo: tuple[Path, DemoResult], tmp_path: Path) -> None:
    before = _listing(small_demo[0])
    message = _refused(_run("demo", "-o", small_demo[0], cwd=tmp_path))

    assert message == f"{small_demo[0]} exists already; pass --force to replace it or -o for another place"
    assert _listing(small_demo[0]) == before


@pytest.mark.parametrize(("passed", "exit_code"), [(True, 0), (False, 3)])
def test_the_demo_exits_by_its_verdict(
    passed: bool, exit_code: int, small_demo: tuple[Path, DemoResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run_demo", lambda *_: replace(small_demo[1], passed=passed))
    done = CliRunner().invoke(cli.app, ["demo", "--json"])

    assert done.exit_code == exit_code
    assert json.loads(done.stdout)["passed"] is passed


def test_the_demo_seed_decides_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(request: Any, _: Reporter) -> None:
        seen.append(request.recipe.seed)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(DemoRequest(output=tmp_path / "out", seed=5), Reporter())

    assert seen == [5]
    assert list(tmp_path.iterdir()) == []


# Where the time goes.


def test_the_profile_accounts_for_all_operators(portable_model: Path) -> None:
    result = api.bench(portable_model, seconds=0.0, profile=True)
    profile, executed = result["model"]["profile"], result["model"]["executed"]["operators"]

    assert {row["name"]: row["nodes"] for row in profile["operators"]}.items() <= executed.items()
    assert sum(row["share"] for row in profile["operators"]) == pytest.approx(1)
    assert sum(row["ms"] for row in profile["roles"]) == pytest.approx(sum(r["ms"] for r in profile["operators"]))
    roles = {row["name"]: row["nodes"] for row in profile["roles"]}
    assert roles["blocks.*.mlp.act (Gelu)"] == 2  # one in each block
    assert {row["name"] for row in result["baseline"]["profile"]["operators"]} >= {"Gelu", "Softmax"}


def test_the_profile_is_printed(run_copy: Path, ort_model: Path, tmp_path: Path) -> None:
    done = _run("bench", ort_model, "--profile", "--seconds", 0, "--quiet", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert re.search(r"^  MatMulIntegerToFloat +\d+ nodes +[\d.]+ ms +[\d.]+ %$", done.stdout, re.M)
    assert {"model by operators:", "model by roles:", "baseline by roles:"} <= set(done.stdout.splitlines())


def test_a_lint_finding_ends_with_the_negative_code(ort_model: Path, portable_model: Path, tmp_path: Path) -> None:
    clean, faulty = (_run("lint", path, "--target", "portable", cwd=tmp_path) for path in (portable_model, ort_model))

    assert (clean.returncode, clean.stdout) == (0, "clean\n")
    assert faulty.returncode == 3
    assert "custom-operator: MatMulIntegerToFloat blocks.0.attn.z.scaled: com.microsoft is no standard" in faulty.stdout
