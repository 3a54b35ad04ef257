"""Weights of timm models as the start of a student: distilled or not, .safetensors or .pth, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from ofq_deploy import api
from ofq_deploy.data.imagenet import names, wnids
from ofq_deploy.errors import ModelError, OfqError
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Model
from ofq_deploy.train.convert import quantizers_off
from ofq_deploy.train.sources.timm_weights import load_pretrained, model_of
from tests.support.models import sizes

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 1000}


def state(kind: type, **sizes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return kind(**{**SIZES, **sizes}).state_dict()


def photographs(root: Path, folders: list[str], side: int = 40) -> Path:
    """train/ and val/ with four noise images per class."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in folders:
            (root / split / folder).mkdir(parents=True)
            for index in range(4):
                pixels = generator.integers(0, 255, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / folder / f"{index}.png")
    return root


def train(init: Path, data: Path, output: Path, **settings: Any) -> Path:
    changes = {"init": str(init), "data": str(data), "train.epochs": 1, "train.batch_size": 4, **settings}
    return api.train("finetune", overrides=changes, output=output, device="cpu", report=Reporter(quiet=False))


@pytest.mark.parametrize("kind", [VisionTransformer, VisionTransformerDistilled])
@pytest.mark.parametrize("size", [32, 48])
def test_sizes_are_told_by_the_tensors(kind: type, size: int) -> None:
    weights = state(kind, img_size=size)

    told = model_of(weights, distilled=False)

    assert told == Model("deit", kind is VisionTransformerDistilled, size, 8, 64, 2, 1)


def test_heads_of_64_are_assumed_unless_their_number_is_given() -> None:
    weights = state(VisionTransformer, embed_dim=192, num_heads=3)

    assert model_of(weights, True).heads == 3
    assert model_of(weights, True, heads=6).heads == 6


def test_a_distilled_student_starts_from_a_plain_file() -> None:
    weights = state(VisionTransformer)
    model, notes = load_pretrained(weights, model_of(weights, True), 1000)
    made = model.state_dict()

    torch.testing.assert_close(made["dist_token"], weights["cls_token"], rtol=0, atol=0)
    torch.testing.assert_close(made["pos_embed"][:, 1], weights["pos_embed"][:, 0], rtol=0, atol=0)
    torch.testing.assert_close(made["pos_embed"][:, 2:], weights["pos_embed"][:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(made["head_dist.weight"], weights["head.weight"], rtol=0, atol=0)
    assert notes == ["the file is not distilled: class token, its position and head are copied for the distillation"]


def test_a_distilled_file_is_taken_as_it_is() -> None:
    weights = state(VisionTransformerDistilled)
    model, notes = load_pretrained(weights, model_of(weights, False), 1000)

    assert notes == []
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda w: w.pop("blocks.1.mlp.fc1.bias"), "blocks.1.mlp.fc1.bias missing"),
        (lambda w: w.update(extra=torch.ones(1)), "extra missing, unknown"),
        (lambda w: w.update({"blocks.0.attn.qkv.weight": torch.ones(64, 64)}), "blocks.0.attn.qkv.weight missing"),
        (lambda w: w["blocks.0.norm1.weight"].fill_(float("nan")), "blocks.0.norm1.weight holds values that are not"),
    ],
)
def test_weights_that_do_not_fit_are_named(damage: Callable[[dict[str, torch.Tensor]], object], said: str) -> None:
    weights = state(VisionTransformer)
    damage(weights)

    with pytest.raises(ModelError, match=said):
        load_pretrained(weights, model_of(weights, True), 1000)


@pytest.mark.parametrize("name", ["cls_token", "pos_embed", "patch_embed.proj.weight"])
def test_weights_of_another_network_are_refused(name: str) -> None:
    weights = state(VisionTransformer)
    del weights[name]

    with pytest.raises(ModelError, match="of no timm ViT or DeiT"):
        model_of(weights, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pos_embed": torch.ones(17)}, "pos_embed should have 3 axes"),
        ({"pos_embed": torch.ones(1, 1, 64)}, "positions for 0 patches"),
        ({"head.weight": torch.ones(())}, "head.weight has the shape"),
        ({"blocks.7.norm1.bias": torch.ones(64)}, "3 blocks that are not numbered from 0"),
        ({"blocks.x.y": torch.ones(1)}, "blocks.x.y missing, unknown"),
    ],
)
def test_odd_tensors_are_refused(change: dict[str, torch.Tensor], said: str) -> None:
    weights = state(VisionTransformer) | change

    with pytest.raises(ModelError, match=said):
        load_pretrained(weights, model_of(weights, True), 1000)


def test_positions_that_are_no_square_are_refused() -> None:
    weights = state(VisionTransformer) | {"pos_embed": torch.ones(1, 1 + 14, 64)}

    with pytest.raises(ModelError, match="14 patches, which is no square"):
        model_of(weights, True)


def test_registers_layer_scale_and_positions_are_told_by_the_tensors() -> None:
    weights = state(VisionTransformer, reg_tokens=4, init_values=1e-5, no_embed_class=True)

    told = model_of(weights, False)

    assert told == Model("deit", False, 32, 8, 64, 2, 1, told.layer_scale, 4, False)
    assert told.layer_scale == pytest.approx(1e-5)
    with pytest.raises(OfqError, match=r"model\.distilled = false"):
        model_of(weights, True)


def test_imagenet_weights_keep_their_thousand_classes(tmp_path: Path) -> None:
    weights = state(VisionTransformer)
    save_file(weights, tmp_path / "weights.safetensors")
    data = photographs(tmp_path / "data", [wnids()[3], wnids()[700]])

    run = train(tmp_path / "weights.safetensors", data, tmp_path / "run")

    frozen = api.load_frozen(run / "frozen.safetensors")
    assert (frozen.graph.classes, sizes(frozen).prefix, frozen.labels) == (1000, 2, names())
    teacher = load_file(run / "teacher.safetensors")
    torch.testing.assert_close(teacher["head.weight"], weights["head.weight"], rtol=0, atol=0)
    torch.testing.assert_close(teacher["head_dist.weight"], weights["head.weight"], rtol=0, atol=0)
    phases = {json.loads(line)["phase"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert phases == {"quantized"}
    assert api.validate(api.export(run), images=4)["passed"]


def test_other_classes_get_a_new_head_and_a_trained_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": state(VisionTransformer)}, tmp_path / "weights.pth")
    data = photographs(tmp_path / "data", ["cat", "dog", "eel"])

    run = train(tmp_path / "weights.pth", data, tmp_path / "run", **{"teacher.epochs": 1})

    assert api.load_frozen(run / "frozen.safetensors").labels == ("cat", "dog", "eel")
    phases = [json.loads(line)["phase"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert phases == ["teacher", "quantized"]
    assert "the file has a head for 1000 classes, the data has 3: it starts anew" in capsys.readouterr().err


def test_pth_and_safetensors_give_the_same_run(tmp_path: Path) -> None:
    weights = state(VisionTransformer)
    save_file(weights, tmp_path / "weights.safetensors")
    torch.save(weights, tmp_path / "weights.pth")
    data = photographs(tmp_path / "data", [wnids()[0], wnids()[1]])

    runs = [train(tmp_path / f"weights.{kind}", data, tmp_path / kind) for kind in ("safetensors", "pth")]

    first, second = ((run / "frozen.safetensors").read_bytes() for run in runs)
    assert first == second


def test_a_moved_file_does_not_matter_to_later_commands(tmp_path: Path) -> None:
    save_file(state(VisionTransformer), tmp_path / "weights.safetensors")
    data = photographs(tmp_path / "data", [wnids()[0], wnids()[1]])
    run = train(tmp_path / "weights.safetensors", data, tmp_path / "run")
    (tmp_path / "weights.safetensors").unlink()
    shutil.move(run, tmp_path / "elsewhere")

    assert api.validate(api.export(tmp_path / "elsewhere"), images=2)["passed"]


@pytest.mark.parametrize(
    ("init", "data", "said"),
    [
        ("absent.safetensors", "digits", "no weights absent.safetensors; pass"),
        ("cut.safetensors", "digits", "cut.safetensors is not a whole safetensors file"),
        ("absent.pth", "digits", "no checkpoint absent.pth"),
        ("good.safetensors", "digits", "takes images of 3 channels, digits has 1; pass"),
        ("good.safetensors", "absent", "no data set 'absent'"),
    ],
)
def test_what_cannot_start_a_student_is_refused(
    init: str, data: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(state(VisionTransformer), "good.safetensors")
    Path("cut.safetensors").write_bytes(Path("good.safetensors").read_bytes()[:1000])

    with pytest.raises(OfqError) as caught:
        train(Path(init), Path(data), Path("run"))

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


@pytest.mark.parametrize("kind", [VisionTransformer, VisionTransformerDistilled])
def test_convert_takes_a_file_of_weights(kind: type, tmp_path: Path) -> None:
    network = kind(**SIZES | {"embed_dim": 128, "num_heads": 2}).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    images = torch.rand(2, 3, 32, 32)

    student, replaced = api.convert(tmp_path / "weights.safetensors")

    assert {"QkrAttention"} <= {replacement.now for replacement in replaced}
    with quantizers_off(student), torch.no_grad():
        torch.testing.assert_close(student.eval()(images), network(images), rtol=0, atol=1e-5)
