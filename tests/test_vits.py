"""timm's ViTs beyond plain DeiT, small and random: from conversion to the proof on every target, and through a recipe."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from ofq_deploy import api
from ofq_deploy.data.images import Preprocessing
from ofq_deploy.export.fp32 import build_fp32
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import Frozen, load_frozen, save_frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.proof.proof import prove_free_run, prove_operators, prove_weights
from ofq_deploy.runtime_tests.runners.ort import open_session, run_logits
from ofq_deploy.train.convert import calibrate, convert, quantizers_off
from ofq_deploy.train.freeze import freeze
from ofq_deploy.train.witness import TorchRunner
from tests.support.kernels import provable_targets
from tests.support.models import random_images

SIZES: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 7,
    "in_chans": 3,
}
NAMES: dict[str, Any] = {
    "vit_small_patch14_dinov2": {"model.layer_scale": 1e-5},
    "deit3_small_patch16_224": {"model.layer_scale": 1e-6, "model.class_position": False},
    "vit_base_patch16_siglip_gap_224": None,  # the mean behind the norm
    "vit_medium_patch16_gap_256": None,  # LayerScale too, and no biases of queries, keys and values
    "vit_small_patch16_224": {"model.pool": "avg"},  # the mean before the norm
    "vit_small_patch14_reg4_dinov2": {"model.layer_scale": 1e-5, "model.registers": 4, "model.class_position": False},
}
FORMS = [
    Quantization(4, 4),
    Quantization(3, 4, "qk", "tensor", shifts=False),
    Quantization(2, 2, "qk", "tensor", weights="lsq"),
]


def random_model(name: str) -> nn.Module:
    """timm's architecture in small, with random values everywhere; LayerScale's factors of both signs."""
    torch.manual_seed(0)
    mean: dict[str, Any] = {"global_pool": "avg"} if name == "vit_small_patch16_224" else {}
    model = timm.create_model(name, pretrained=False, **SIZES, **mean).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.5 if key.endswith("gamma") else 0.1))
    return model


def frozen_of(student: nn.Module, config: Quantization, path: Path) -> Frozen:
    calibrate(student, random_images(8, channels=3))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith(("before", "after")):
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view(parameter.shape))
    how = Preprocessing(16, 16, "bilinear", (0.5,) * 3, (0.25,) * 3)
    save_frozen(freeze(student, config, how, tuple("abcdefg")), path)
    return load_frozen(path)


@pytest.mark.parametrize("name", NAMES)
def test_conversion_keeps_the_function(name: str) -> None:
    model, images = random_model(name), random_images(channels=3)
    for attention in ("qkr", "qk"):
        student, _ = convert(model, Quantization(attention=attention))
        with torch.no_grad(), quantizers_off(student.eval()):
            torch.testing.assert_close(student(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", FORMS, ids=lambda config: f"{config.label}-{config.attention}-{config.act_step}")
@pytest.mark.parametrize("name", NAMES)
def test_every_target_computes_what_torch_computes(name: str, config: Quantization, tmp_path: Path) -> None:
    student = convert(random_model(name), config)[0].eval()
    frozen = frozen_of(student, config, tmp_path / "frozen.safetensors")
    images = random_images(8, channels=3).numpy()
    for target in provable_targets():
        if target.name == "openvino" and config.act_step == "token":
            continue
        backend = target.only_on or "ort-cpu"
        write_checked(build(frozen, target), tmp_path / "model.onnx")
        file = OnnxFile(tmp_path / "model.onnx")

        assert prove_weights(file, frozen).passed
        for comparison in prove_operators(file, frozen, images, TorchRunner(student), Reporter(), backend):
            assert comparison.passed, (target.name, comparison.faults())
        free = prove_free_run(file, frozen, images, Reporter(), backend)
        assert free.passed, (target.name, free.divergences)


@pytest.mark.parametrize("name", NAMES)
def test_the_float_model_computes_timms_logits(name: str, tmp_path: Path) -> None:
    model, images = random_model(name), random_images(channels=3)
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    frozen = frozen_of(convert(model, Quantization())[0].eval(), Quantization(), tmp_path / "frozen.safetensors")
    write_checked(build_fp32(frozen, tmp_path / "teacher.safetensors"), tmp_path / "fp32.onnx")
    with torch.no_grad():
        expected = model(images).numpy()

    np.testing.assert_allclose(run_logits(open_session(tmp_path / "fp32.onnx"), images.numpy()), expected, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, changes in NAMES.items() if changes])
def test_a_recipe_trains_it_and_the_run_is_proven(name: str, tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {**tiny_settings, "model.distilled": False, "model.dim": 32, "model.heads": 2, **NAMES[name]}
    run = api.train(overrides=changes, output=tmp_path / "runs" / "vit", device="cpu")
    result = api.validate(api.export(run, target="ort-cpu"), images=4)

    assert result["passed"], result["faults"]
    assert result["codes_compared"] > 10_000
