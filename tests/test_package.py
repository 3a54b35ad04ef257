"""Packages: what a server reads of them, and that a bare Python computes from them what our own runner computes."""

import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from packaging.requirements import Requirement
from PIL import Image
from tritonclient.grpc import model_config_pb2

from ofq_deploy import api
from ofq_deploy.data.images import load_image
from ofq_deploy.errors import OfqError, OnnxFileError, OutputError, UnsupportedByTarget
from ofq_deploy.files import sha256
from ofq_deploy.model.file import OnnxFile, read_model
from ofq_deploy.runtime_tests.runners.ort import open_session, run_logits
from ofq_deploy.serving.servable import oldest_onnxruntime
from tests.support.real_data import real

ROOT = Path(__file__).resolve().parent.parent
SEVEN = ROOT / "docs" / "images" / "seven.png"
PREFIX = "ofq_deploy."


@pytest.fixture(scope="module")
def fp32_model(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.export(tiny_run, target="fp32", output=tmp_path_factory.mktemp("fp32") / "model.fp32.onnx")


@pytest.fixture
def model(portable_model: Path, tmp_path: Path) -> Path:
    """A copy, free to be changed."""
    return Path(shutil.copyfile(portable_model, tmp_path / "tiny.onnx"))


def _change(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = read_model(path)
    change(model)
    onnx.save(model, path)
    return path


def _metadata(path: Path, **entries: Any) -> Path:
    """Metadata entries set to what they are given (as JSON, or as they are if they are text), or removed by None."""

    def change(model: onnx.ModelProto) -> None:
        for key, value in entries.items():
            (entry,) = [entry for entry in model.metadata_props if entry.key == PREFIX + key]
            if value is None:
                model.metadata_props.remove(entry)
            else:
                entry.value = value if isinstance(value, str) else json.dumps(value)

    return _change(path, change)


def _fix_batch(path: Path, batch: int) -> Path:
    def change(model: onnx.ModelProto) -> None:
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = batch

    return _change(path, change)


def _config(folder: Path) -> tuple[Path, Any]:
    """The model's folder in a repository, and its configuration as Triton's own message."""
    (path,) = folder.glob("*/config.pbtxt")
    return path.parent, text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def _listing(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


# The model repository of Triton.


@pytest.mark.parametrize("fixture", ["portable_model", "ort_model", "fp32_model"])
def test_triton_reads_the_tensors_that_the_runtime_sees(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Triton refuses a configuration that names more inputs than the session has, as the constant `one`."""
    path = request.getfixturevalue(fixture)
    api.package(path, kind="triton", output=tmp_path / "repository", name="digits")
    folder, config = _config(tmp_path / "repository")
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"))
    kinds = {"tensor(float)": model_config_pb2.DataType.TYPE_FP32}

    for told, seen in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(x.name, x.data_type, list(x.dims)) for x in told] == [
            (y.name, kinds[y.type], y.shape[1:]) for y in seen
        ]
        assert {y.shape[0] for y in seen} == {"batch"}
    assert folder.name == config.name == "digits"
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 8)
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    ]
    assert config.version_policy.latest.num_versions == 1
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert config.parameters["intra_op_thread_count"].string_value == "0"
    assert not config.optimization.execution_accelerators.gpu_execution_accelerator
    labels = (folder / config.output[0].label_filename).read_text(encoding="utf-8").splitlines()
    assert labels == list("0123456789")
    assert sha256(folder / "1" / "model.onnx") == sha256(path)


def test_the_server_is_warmed_by_batches_that_the_model_takes(portable_model: Path, tmp_path: Path) -> None:
    api.package(portable_model, kind="triton", output=tmp_path / "repository", max_batch=6, threads=3)
    folder, config = _config(tmp_path / "repository")
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"))

    assert [sample.batch_size for sample in config.model_warmup] == [1, 6]
    for sample in config.model_warmup:
        ((name, tensor),) = sample.inputs.items()
        assert tensor.random_data
        assert tensor.data_type == model_config_pb2.DataType.TYPE_FP32
        images = np.zeros((sample.batch_size, *tensor.dims), dtype=np.float32)
        assert session.run(None, {name: images})[0].shape == (sample.batch_size, 10)
    assert list(config.dynamic_batching.preferred_batch_size) == [3, 6]
    assert config.parameters["intra_op_thread_count"].string_value == "3"


@pytest.mark.parametrize(("largest", "preferred"), [(1, []), (2, [2]), (3, [3]), (32, [16, 32])])
def test_batch_sizes_that_are_worth_no_wait(
    largest: int, preferred: list[int], portable_model: Path, tmp_path: Path
) -> None:
    api.package(portable_model, kind="triton", output=tmp_path / "repository", max_batch=largest)
    config = _config(tmp_path / "repository")[1]

    assert config.max_batch_size == largest
    assert config.HasField("dynamic_batching") == bool(preferred)
    assert list(config.dynamic_batching.preferred_batch_size) == preferred


def test_a_model_for_tensorrt_is_compiled_where_it_is_served(model: Path, tmp_path: Path) -> None:
    api.package(_metadata(model, target="tensorrt"), kind="triton", output=tmp_path / "repository", max_batch=4)
    folder, config = _config(tmp_path / "repository")
    readme = " ".join((tmp_path / "repository" / "README.md").read_text(encoding="utf-8").replace("\\", "").split())

    assert config.backend == "tensorrt"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert not config.parameters
    assert (
        "/usr/src/tensorrt/bin/trtexec --stronglyTyped --onnx=tiny/1/model.onnx --saveEngine=tiny/1/model.plan "
        "--minShapes=image:1x1x16x16 --optShapes=image:4x1x16x16 --maxShapes=image:4x1x16x16"
    ) in readme
    assert (folder / "1" / "model.onnx").is_file()


def test_a_model_for_tensorrt_in_onnx_runtime_is_accelerated(model: Path, tmp_path: Path) -> None:
    api.package(
        _metadata(model, target="tensorrt"), kind="triton", output=tmp_path / "repository", backend="onnxruntime"
    )
    config = _config(tmp_path / "repository")[1]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator

    assert config.backend == "onnxruntime"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "INT8",
        "trt_profile_min_shapes": "image:1x1x16x16",
        "trt_profile_opt_shapes": "image:8x1x16x16",
        "trt_profile_max_shapes": "image:8x1x16x16",
    }
    assert "trtexec" not in (tmp_path / "repository" / "README.md").read_text(encoding="utf-8")


def test_a_float_model_may_be_compiled_too(fp32_model: Path, tmp_path: Path) -> None:
    api.package(fp32_model, kind="triton", output=tmp_path / "repository", backend="tensorrt")

    assert _config(tmp_path / "repository")[1].backend == "tensorrt"


def test_a_model_of_one_image_is_not_batched(model: Path, tmp_path: Path) -> None:
    api.package(_fix_batch(model, 1), kind="triton", output=tmp_path / "repository")
    config = _config(tmp_path / "repository")[1]

    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 1, 16, 16]
    assert list(config.output[0].dims) == [1, 10]
    assert not config.HasField("dynamic_batching")
    assert [(s.batch_size, list(s.inputs["image"].dims)) for s in config.model_warmup] == [(1, [1, 1, 16, 16])]


def test_the_client_of_the_readme_asks_for_what_the_server_has(
    portable_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a server: the request is caught before it leaves."""
    asked: list[Any] = []

    class Answer:
        def as_numpy(self, name: str) -> str:
            return f"the best of {name}"

    class Client:
        def __init__(self, url: str) -> None:
            self.url = url

        def infer(self, *arguments: Any, **more: Any) -> Answer:
            asked.append((*arguments, more))
            return Answer()

    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", Client)
    api.package(portable_model, kind="triton", output=tmp_path / "repository")
    config = _config(tmp_path / "repository")[1]
    readme = (tmp_path / "repository" / "README.md").read_text(encoding="utf-8")
    images = load_image(SEVEN, OnnxFile(portable_model).described.preprocessing)[None]
    exec(readme.split("```python\n")[1].split("```")[0], {"prepare": lambda _: images})
    ((name, (image,), more),) = asked

    assert name == config.name
    assert (image.name(), image.datatype()) == (config.input[0].name, "FP32")
    assert list(image.shape()) == [1, *config.input[0].dims]
    assert image._get_content() == images.tobytes()
    assert [output.name() for output in more["outputs"]] == [config.output[0].name]
    assert capsys.readouterr().out == "the best of logits\n"


def test_any_tensor_name_survives_the_text(model: Path, tmp_path: Path) -> None:
    strange = 'im"age\\ \n{é}'

    def rename(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].name = strange
        for node in proto.graph.node:
            for index, name in enumerate(node.input):
                if name == "image":
                    node.input[index] = strange

    api.package(_change(model, rename), kind="triton", output=tmp_path / "repository")
    config = _config(tmp_path / "repository")[1]

    assert [tensor.name for tensor in config.input] == [strange]
    assert list(config.model_warmup[0].inputs) == [strange]


# The folder for ONNX Runtime, in an environment that has nothing of ours.


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with onnxruntime, numpy, pillow and what they ask for: links to what is installed here."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder)
    python, (site,) = folder / "bin" / "python", folder.glob("lib/python*/site-packages")
    for distribution in _with_requirements("onnxruntime", "numpy", "pillow"):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(str(distribution.locate_file(name)))
    assert subprocess.run([python, "-I", "-c", "import onnxruntime, numpy, PIL"]).returncode == 0
    for name in ("ofq_deploy", "torch", "onnx"):
        assert subprocess.run([python, "-I", "-c", f"import {name}"], capture_output=True).returncode == 1
    return python


def _with_requirements(*names: str) -> list[importlib.metadata.Distribution]:
    """Distributions, and those that they need, extras left out."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            asked = map(Requirement, found[name].requires or ())
            waiting += [one.name for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    return list(found.values())


def _predictions(python: Path, package: Path, images: list[Path], cwd: Path) -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command: list[str | Path] = [python, "-I", package / "predict.py", *images]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _expected(model: Path, images: list[Path]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """The model's labels and, by our own preprocessing and runner, the probabilities [images, classes]."""
    described, session = OnnxFile(model).described, open_session(model)
    logits = [run_logits(session, load_image(path, described.preprocessing)[None])[0] for path in images]
    powers = np.exp(np.asarray(logits, dtype=np.float64))
    return described.labels, powers / powers.sum(-1, keepdims=True)


def _agree(found: list[dict[str, Any]], model: Path, images: list[Path]) -> None:
    labels, probabilities = _expected(model, images)
    assert [row["image"] for row in found] == list(map(str, images))
    for row, expected in zip(found, probabilities, strict=True):
        best = np.argsort(-expected, kind="stable")[:5]
        assert [entry["label"] for entry in row["top5"]] == [labels[k] for k in best], row["image"]
        np.testing.assert_allclose([entry["probability"] for entry in row["top5"]], expected[best], rtol=0, atol=1e-6)


def _strange_images(folder: Path, picture: Image.Image) -> list[Path]:
    """One picture in the forms that preprocessing must tell apart."""
    folder.mkdir()
    made = []

    def save(name: str, image: Image.Image, **options: Any) -> None:
        image.save(folder / name, **options)
        made.append(folder / name)

    for orientation in (3, 5, 6, 8):  # upside down, mirrored, on either side
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"turned{orientation}.jpg", picture.crop((0, 0, 201, 120)), exif=exif, quality=95)
    save("wide.png", picture.crop((10, 20, 296, 103)))
    save("tall.jpg", picture.crop((10, 20, 103, 289)))
    save("small.png", picture.resize((19, 23)))
    save("grey.jpg", picture.convert("L"))
    save("transparent.png", picture.convert("RGBA"))
    save("palette.gif", picture.convert("P"))
    save("print.jpg", picture.convert("CMYK"))
    grey16 = np.asarray(picture.convert("L"), dtype=np.uint16) * 257
    save("deep.png", Image.fromarray(grey16))
    return made


@pytest.mark.parametrize("fixture", ["portable_model", "ort_model", "fp32_model"])
def test_a_bare_python_predicts_what_we_predict(
    fixture: str, request: pytest.FixtureRequest, bare_python: Path, tmp_path: Path
) -> None:
    path = request.getfixturevalue(fixture)
    api.package(path, kind="ort", output=tmp_path / "served")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((300, 300), Image.Resampling.BICUBIC)
    images = [SEVEN, *_strange_images(tmp_path / "images", picture)]

    _agree(_predictions(bare_python, tmp_path / "served", images, tmp_path), path, images)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ImageOps.exif_transpose(Image.open(path))", "Image.open(path)"),
        ('Image.Resampling[HOW["interpolation"].upper()]', "Image.Resampling.BICUBIC"),
        ('int(HOW["resize"] * side / min(image.size))', 'round(HOW["resize"] * side / min(image.size))'),
        ("round((width - size) / 2), round(", "int((width - size) / 2), int("),
        ("(np.asarray(image) >> 8)", "(np.asarray(image) >> 4)"),
        ("- mean) / std", "- mean)"),
        ('.split("\\n")', '.split("\\n")[1:] + ["0"]'),
    ],
)
def test_a_script_that_prepares_images_otherwise_is_caught(
    right: str, wrong: str, portable_model: Path, bare_python: Path, tmp_path: Path
) -> None:
    api.package(portable_model, kind="ort", output=tmp_path / "served")
    script = tmp_path / "served" / "predict.py"
    text = script.read_text(encoding="utf-8")
    assert text.count(right) == 1
    script.write_text(text.replace(right, wrong), encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((300, 300), Image.Resampling.BICUBIC)
    images = [SEVEN, *_strange_images(tmp_path / "images", picture)]
    found = _predictions(bare_python, tmp_path / "served", images, tmp_path)

    with pytest.raises(AssertionError):
        _agree(found, portable_model, images)


def test_turned_images_are_told_apart(portable_model: Path, tmp_path: Path) -> None:
    """The comparison above would mean little if orientation and shape changed nothing."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    images = _strange_images(tmp_path / "images", Image.fromarray(pixels).resize((300, 300), Image.Resampling.BICUBIC))
    probabilities = _expected(portable_model, images[:6])[1]

    apart = np.abs(probabilities[:, None] - probabilities[None]).max(-1)[np.triu_indices(6, 1)]
    assert apart.min() > 1e-5


def test_a_bare_python_predicts_what_we_predict_on_photographs(bare_python: Path, tmp_path: Path) -> None:
    checkpoint, folder = real("ofq-official/deit_t_w4a4_qkr.pth.tar"), real("data/nips1000/images")
    run = api.import_checkpoint(checkpoint, output=tmp_path / "run")
    path = api.export(run, target="ort-cpu")
    api.package(run, kind="ort", output=tmp_path / "served")
    photographs = sorted(folder.iterdir())[::50]
    with Image.open(photographs[0]) as picture:
        images = [*photographs, *_strange_images(tmp_path / "images", picture.convert("RGB"))]
    found = _predictions(bare_python, tmp_path / "served", images, tmp_path)

    assert len(photographs) == 20
    assert len({row["top5"][0]["label"] for row in found}) > 5
    _agree(found, path, images)


@pytest.mark.parametrize(
    ("opset", "weight_bits", "act_bits", "oldest"),
    [
        (20, 8, 8, "1.17"),
        (21, 8, 8, "1.18"),
        (20, 3, 8, "1.21"),
        (22, 8, 8, "1.21"),
        (21, 4, 8, "1.23"),
        (20, 4, 4, "1.24"),
        (25, 2, 2, "1.24"),
        (26, 8, 8, "1.25"),
    ],
)
def test_the_oldest_onnxruntime_of_a_model(opset: int, weight_bits: int, act_bits: int, oldest: str) -> None:
    """Golden values: what the versions loaded when they were tried, see docs/serving.md."""
    assert oldest_onnxruntime(opset, {weight_bits}, {act_bits}) == oldest
    assert oldest_onnxruntime(opset, {8, weight_bits}, {8, act_bits}) == oldest


def test_the_readme_of_a_package_names_the_oldest_onnxruntime(portable_model: Path, tmp_path: Path) -> None:
    for kind in ("ort", "triton"):
        manifest = api.package(portable_model, kind=kind, output=tmp_path / kind)

        assert "1.24" in (tmp_path / kind / "README.md").read_text(encoding="utf-8")
        assert "$" not in (tmp_path / kind / "README.md").read_text(encoding="utf-8")
        assert manifest["onnxruntime"] == ">=1.24"


# The manifest, and the command.


@pytest.mark.parametrize("kind", ["ort", "triton"])
def test_the_manifest_names_every_file(kind: str, portable_model: Path, tmp_path: Path) -> None:
    returned = api.package(portable_model, kind=kind, output=tmp_path / "served")
    manifest = json.loads((tmp_path / "served" / "manifest.json").read_text(encoding="utf-8"))
    listing = _listing(tmp_path / "served")
    del listing["manifest.json"]

    assert manifest["files"] == listing
    assert returned == manifest | {"package": str(tmp_path / "served")}
    assert manifest["schema"] == "ofq-deploy/package/1"
    assert manifest["model"] == {
        "target": "portable",
        "sha256": sha256(portable_model),
        "frozen_sha256": OnnxFile(portable_model).described.frozen_sha256,
    }


def _run(*arguments: object, cwd: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run ofq-deploy in a process of its own; `limit` is the largest file, in bytes, that it may write."""

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # type: ignore[arg-type]

    return subprocess.run(
        [sys.executable, "-m", "ofq_deploy", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        preexec_fn=set_limit if limit else None,
    )


def test_the_command_of_the_manifest_makes_the_same_package(model: Path, tmp_path: Path) -> None:
    arguments = ["package", "tiny.onnx", "--for", "triton", "-o", "made", "--max-batch", "2"]
    done = _run(*arguments, "--json", cwd=tmp_path)
    result = json.loads(done.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert result["package"] == "made"
    command = json.loads((tmp_path / "made" / "manifest.json").read_text())["command"]
    assert command == "ofq-deploy " + " ".join(arguments)
    before = _listing(tmp_path / "made")
    again = _run(*command.split()[1:], "--force", "--quiet", cwd=tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "made\n", "")
    assert _listing(tmp_path / "made") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "tiny.onnx"]


def test_a_run_folder_gives_its_name_and_its_newest_model(tiny_run: Path, ort_model: Path, tmp_path: Path) -> None:
    os.utime(ort_model)
    manifest = api.package(tiny_run, kind="triton", output=tmp_path / "repository")

    assert manifest["name"] == tiny_run.name
    assert manifest["model"]["target"] == "ort-cpu"


def test_a_package_is_itself_a_model_to_predict_with(portable_model: Path, tmp_path: Path) -> None:
    api.package(portable_model, kind="ort", output=tmp_path / "served")

    assert api.predict([SEVEN], model=tmp_path / "served") == api.predict([SEVEN], model=portable_model)


# Bad input: one line, nothing written, nothing changed.


def _foreign(path: Path) -> None:
    """Another exporter's model: the same graph, no word about labels and preprocessing."""
    _change(path, lambda model: model.ClearField("metadata_props"))


def _hollow(path: Path) -> None:
    _change(path, lambda model: model.graph.initializer.pop())


def _second_output(path: Path) -> None:
    _change(path, lambda model: model.graph.output.append(onnx.ValueInfoProto(name="embedding")))


def _halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HOW = {"size": 16, "resize": 16, "interpolation": "bilinear", "mean": [0.3], "std": [0.35]}


@pytest.mark.parametrize("kind", ["ort", "triton"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (Path.unlink, "no model {}; make one with: ofq-deploy export --to onnx"),
        (_halved, "{} is no ONNX file, or is cut ("),
        (_foreign, "{} was not written by ofq-deploy export ("),
        (_hollow, "{} does not load in ONNX Runtime: "),
        (_second_output, "{} has 2 outputs (logits, embedding), expected one; export it again"),
        (
            lambda path: _metadata(path, labels=None),
            "{} was not written by ofq-deploy export (metadata lacks 'labels')",
        ),
        (lambda path: _metadata(path, labels="[1,"), "{} was not written by ofq-deploy export ("),
        (
            lambda path: _metadata(path, labels=["a", "b"]),
            "{}: its labels ask for 'logits' as FLOAT [batch, 2], the graph has FLOAT [batch, 10]; export it again",
        ),
        (
            lambda path: _metadata(path, labels=[*"012345678", "9\n10"]),
            "{} has damaged metadata: label '9\\n10' is not one line of text; export it again",
        ),
        (
            lambda path: _metadata(path, labels=list(range(10))),
            "{} has damaged metadata: label 0 is not one line of text; export it again",
        ),
        (
            lambda path: _metadata(path, preprocessing=HOW | {"size": 8}),
            "{}: its preprocessing ask for 'image' as FLOAT [batch, 1, 8, 8], the graph has FLOAT [batch, 1, 16, 16]; export",
        ),
        (
            lambda path: _metadata(path, preprocessing=HOW | {"mean": [0.3] * 3, "std": [0.35] * 3}),
            "{}: its preprocessing ask for 'image' as FLOAT [batch, 3, 16, 16], the graph has FLOAT [batch, 1, 16, 16]; ",
        ),
        (
            lambda path: _metadata(path, preprocessing=HOW | {"resize": "16"}),
            "{} has damaged metadata: image sides 16 and '16' are no positive integers; export it again",
        ),
        (
            lambda path: _metadata(path, preprocessing=HOW | {"interpolation": "nearest"}),
            "{} has damaged metadata: interpolation 'nearest' is neither bilinear nor bicubic; export it again",
        ),
        (
            lambda path: _metadata(path, preprocessing=HOW | {"std": [0]}),
            "{} has damaged metadata: mean (0.3,) and std (0,) are not one or three numbers each, std above 0; export it",
        ),
        (
            lambda path: _metadata(path, quantization=[4]),
            "{} has damaged metadata: quantization [4]; export it again",
        ),
        (
            lambda path: _metadata(path, target="openvino"),
            "{} was made for openvino, ",
        ),
    ],
)
def test_a_model_that_cannot_be_packed_is_named(
    damage: Callable[[Path], object], expected: str, kind: str, model: Path, tmp_path: Path
) -> None:
    damage(model)
    before = _listing(tmp_path)
    with pytest.raises((OnnxFileError, UnsupportedByTarget)) as caught:
        api.package(model, kind=kind, output=tmp_path / "served")

    assert str(caught.value).startswith(expected.format(model))
    assert "\n" not in str(caught.value)
    assert _listing(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (None, {"kind": "bentoml"}, "no package for 'bentoml'; there are triton, ort"),
        (None, {"kind": "triton", "backend": "tpu"}, "no Triton backend 'tpu'; there are onnxruntime, tensorrt"),
        (
            None,
            {"kind": "triton", "backend": "tensorrt"},
            "{} was made for portable, which Triton's tensorrt backend does not read; export it with --target tensorrt or fp32",
        ),
        (None, {"kind": "triton", "name": "../up"}, "'../up' is no name for a model; use letters, digits, '_' and '-'"),
        (
            None,
            {"kind": "ort", "threads": 0},
            "--backend, --max-batch and --threads belong to --for triton; leave them out",
        ),
        (
            lambda path: _metadata(path, target="tensorrt"),
            {"kind": "ort"},
            "{} was made for tensorrt, not for ONNX Runtime on the CPU; export it with --target ort-cpu or portable",
        ),
        (
            lambda path: _fix_batch(path, 4),
            {"kind": "triton"},
            "{} has its batch axis fixed to 4, a server cannot put images together for it; export it with a symbolic one",
        ),
        (
            lambda path: _fix_batch(path, 1),
            {"kind": "triton", "max_batch": 8},
            "{} has its batch axis fixed to 1, a server cannot put images together for it; export it with a symbolic one",
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_named(
    change: Callable[[Path], Path] | None, options: dict[str, Any], expected: str, model: Path, tmp_path: Path
) -> None:
    if change:
        change(model)
    before = _listing(tmp_path)
    with pytest.raises(UnsupportedByTarget) as caught:
        api.package(model, output=tmp_path / "served", **options)

    assert str(caught.value) == expected.format(model)
    assert _listing(tmp_path) == before


def test_a_model_of_a_fixed_batch_still_has_a_script(model: Path, tmp_path: Path) -> None:
    api.package(_fix_batch(model, 1), kind="ort", output=tmp_path / "served")

    assert "float32 [1, 1, 16, 16]" in (tmp_path / "served" / "README.md").read_text(encoding="utf-8")


def test_outputs_are_not_overwritten(model: Path, tmp_path: Path) -> None:
    api.package(model, kind="ort", output=tmp_path / "served")
    (tmp_path / "served" / "note").write_text("mine")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "note").write_text("mine")
    before = _listing(tmp_path)

    with pytest.raises(OutputError, match="served exists already; pass --force"):
        api.package(model, kind="triton", output=tmp_path / "served")
    with pytest.raises(OutputError, match="own is a folder that ofq-deploy did not make"):
        api.package(model, kind="triton", output=tmp_path / "own", force=True)
    assert _listing(tmp_path) == before

    api.package(model, kind="triton", output=tmp_path / "served", force=True)
    assert not (tmp_path / "served" / "note").exists()
    assert (tmp_path / "served" / "tiny" / "config.pbtxt").is_file()


def test_a_package_never_replaces_the_folder_of_its_model(tiny_run: Path, portable_model: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "runs" / "tiny"))
    before = _listing(tmp_path)
    for folder in (run, run.parent):
        (folder / "manifest.json").touch()
        with pytest.raises(OfqError, match="holds the model itself; choose another place with -o"):
            api.package(run, kind="ort", output=folder, force=True)
        if folder != run:
            (folder / "manifest.json").unlink()
    assert _listing(tmp_path) == before


@pytest.mark.parametrize("limit", [20, 500, 10_000])
def test_a_full_disk_leaves_nothing(limit: int, model: Path, tmp_path: Path) -> None:
    before = _listing(tmp_path)
    done = _run("package", model, "--for", "ort", "-o", "served", "--quiet", cwd=tmp_path, limit=limit)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ofq-deploy: cannot write served: ")
    assert len(done.stderr.splitlines()) == 1
    assert _listing(tmp_path) == before


@pytest.mark.parametrize(
    "arguments", [["--for", "ort"], ["-o", "served"], ["--for", "triton", "-o", "served", "--max-batch", "0"]]
)
def test_wrong_usage_is_one_line(arguments: list[str], model: Path, tmp_path: Path) -> None:
    done = _run("package", model, *arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert not (tmp_path / "served").exists()
