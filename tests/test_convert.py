"""Conversion keeps the network: float equality, no new weights, refusals, calibration, checkpoints."""

import io
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.mlp import SwiGLU
from timm.models import vision_transformer
from torch import Tensor, nn

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import ModelError
from ofq_deploy.recipe import Quantization
from ofq_deploy.train.convert import Replacement, activation_quantizers, calibrate, convert, quantizers_off
from ofq_deploy.train.freeze import freeze
from tests.support.models import random_images, small_vit

FORMS = ("qkr", "qk")
PREPROCESSING = Preprocessing(16, 16, "bilinear", (0.5,), (0.25,))
LABELS = tuple("abcdefg")


def converted(config: Quantization | None = None, **sizes: Any) -> Any:
    """The student; `Any`, so that tests may name its parts."""
    return convert(small_vit(**sizes), config or Quantization())[0].eval()


def calibrated(config: Quantization | None = None, images: Tensor | None = None, **sizes: Any) -> Any:
    model = converted(config, **sizes)
    calibrate(model, random_images() if images is None else images)
    return model


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize(
    ("channels", "dim", "depth", "heads"), [(1, 32, 1, 1), (3, 32, 2, 4), (1, 48, 2, 3), (3, 64, 1, 2)]
)
def test_without_quantizers_the_network_is_the_original(attention, distilled, channels, dim, depth, heads):
    model, images = small_vit(distilled, channels, dim, depth, heads), random_images(channels=channels)
    quantized, _ = convert(model, Quantization(attention=attention))
    with torch.no_grad(), quantizers_off(quantized.eval()):
        actual = quantized(images)

    torch.testing.assert_close(actual, model(images).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("missing", ["qkv_bias", "proj_bias"])
def test_a_network_without_some_biases_stays_itself(attention, missing):
    model = small_vit(**{missing: False})
    quantized, _ = convert(model, Quantization(attention=attention, act_step="tensor", shifts=False))
    with torch.no_grad(), quantizers_off(quantized.eval()):
        actual = quantized(random_images())

    torch.testing.assert_close(actual, model(random_images()).detach(), atol=1e-5, rtol=1e-5)


def test_quantizers_off_ends_with_its_block():
    model = calibrated()
    before = model(random_images())
    with quantizers_off(model):
        without = model(random_images())

    assert not torch.allclose(before, without, atol=1e-3)
    assert torch.equal(before, model(random_images()))


@pytest.mark.parametrize("attention", FORMS)
def test_every_pretrained_tensor_survives(attention):
    source = small_vit(distilled=True, channels=3, depth=2).state_dict()
    kept = converted(Quantization(attention=attention), distilled=True, channels=3, depth=2).state_dict()
    for name, tensor in source.items():
        if attention == "qk" or ".qkv." not in name:
            assert torch.equal(tensor, kept[name]), name


def test_qkr_takes_over_query_key_value_and_the_query_bias():
    source = small_vit(dim=48, heads=3)
    attention = converted(dim=48, heads=3).blocks[0].attn
    query, key, value = source.blocks[0].attn.qkv.weight.chunk(3)
    query_bias, _, value_bias = source.blocks[0].attn.qkv.bias.chunk(3)
    key_bias = torch.einsum("hic,hi->hc", key.view(3, 16, 48), query_bias.view(3, 16))

    assert torch.equal(query, attention.query)
    assert torch.equal(key, attention.key)
    assert torch.equal(value, attention.value.weight)
    assert torch.equal(value_bias, attention.value.bias)
    torch.testing.assert_close(attention.key_bias, key_bias)


def test_the_merged_product_has_one_block_of_rows_per_head():
    source, attention = small_vit(), converted().blocks[0].attn
    query, key, _ = source.blocks[0].attn.qkv.weight.detach().view(3, 2, 16, 32)
    expected = torch.cat([query[head].T @ key[head] for head in range(2)])

    torch.testing.assert_close(attention.product().detach(), expected)


def test_a_float64_model_quantizes_the_product_that_training_saw():
    attention = converted().blocks[0].attn
    expected = attention.product_quant.coded(attention.product()).step

    assert torch.equal(expected, attention.product_quant.coded(attention.double().product()).step)


def test_converting_leaves_the_original_alone():
    model = small_vit(distilled=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantized, _ = convert(model, Quantization())
    with torch.no_grad():
        for parameter in quantized.parameters():
            parameter.fill_(3.0)

    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_replacements_are_reported():
    linear = {"blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "head", "head_dist"}
    qkr = convert(small_vit(distilled=True), Quantization())[1]
    qk = convert(small_vit(distilled=True), Quantization(attention="qk"))[1]
    common = {Replacement(path, "Linear", "QuantLinear") for path in linear}
    common |= {Replacement("patch_embed.proj", "Conv2d", "QuantPatchEmbedding")}
    common |= {Replacement("blocks.0", "Block", "QuantBlock"), Replacement("blocks.0.mlp", "Mlp", "QuantMlp")}
    qkv = Replacement("blocks.0.attn.qkv", "Linear", "QuantLinear")

    assert common | {Replacement("blocks.0.attn", "Attention", "QkrAttention")} == set(qkr)
    assert common | {Replacement("blocks.0.attn", "Attention", "QkAttention"), qkv} == set(qk)


def hybrid_stem(**sizes: Any) -> nn.Module:
    """timm's stem of a convolutional network; it lacks attributes that a patch embedding has."""
    backbone = nn.Conv2d(1, 8, 3, padding=1)
    backbone.num_features = 8  # type: ignore[assignment]
    return HybridEmbed(backbone, feature_size=(16, 16), **sizes)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"qk_norm": True}, "q_norm"),
        ({"global_pool": "max"}, "pooling 'max'"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "pooling over the class token"),
        ({"fc_norm": True}, "a norm after pooling"),
        ({"norm_layer": partial(nn.LayerNorm, bias=False)}, "norms without a bias"),
        ({"distilled": True, "reg_tokens": 2}, "register tokens beside"),
        ({"pos_embed": "none"}, "position embedding"),
        ({"pre_norm": True}, "norm before the blocks"),
        ({"final_norm": False}, "final LayerNorm"),
        ({"norm_layer": "rmsnorm"}, "LayerNorm"),
        ({"num_classes": 0}, "classifier"),
        ({"dynamic_img_size": True}, "dynamic image size"),
        ({"act_layer": "relu"}, "ReLU"),
        ({"attn_drop_rate": 0.1}, "dropout"),
        ({"proj_drop_rate": 0.1}, "dropout"),
        ({"drop_path_rate": 0.1, "depth": 2}, "drop_path"),
        ({"scale_attn_norm": True}, r"attn\.norm"),
        ({"scale_mlp_norm": True}, r"mlp\.norm"),
        ({"patch_drop_rate": 0.5}, "patch"),
        ({"img_size": (16, 32)}, "square"),
        ({"patch_size": (4, 8)}, "square"),
        ({"mlp_layer": SwiGLU}, "SwiGLU"),
        ({"attn_layer": "diff"}, "DiffAttention"),
        ({"embed_layer": hybrid_stem}, "a convolutional stem"),
        ({"block_fn": vision_transformer.ResPostBlock}, "ResPostBlock"),
        ({"block_fn": vision_transformer.ParallelScalingBlock}, "ParallelScalingBlock"),
    ],
)
def test_other_architectures_are_refused_by_the_part(changes, part):
    with pytest.raises(ModelError, match=part):
        convert(small_vit(**changes), Quantization())


def test_other_networks_are_refused_by_their_class():
    with pytest.raises(ModelError, match="Sequential"):
        convert(nn.Sequential(nn.Linear(4, 4)), Quantization())


@pytest.mark.parametrize("attention", FORMS)
def test_an_uncalibrated_model_does_not_run(attention):
    with pytest.raises(RuntimeError, match="calibrate"):
        converted(Quantization(attention=attention))(random_images())


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("act_step", ["token", "tensor"])
def test_calibration_sets_every_step_from_the_images_alone(attention, act_step):
    config = Quantization(attention=attention, act_step=act_step)
    first, second = (calibrated(config, distilled=True) for _ in range(2))
    other = calibrated(config, random_images(seed=1), distilled=True)
    quantizers = activation_quantizers(first)
    for path, quantizer in quantizers.items():
        assert quantizer.initialized, path
        assert (quantizer.step > 0).all(), path
        assert torch.equal(quantizer.step, activation_quantizers(second)[path].step), path

    steps, changed = quantizers["head.input"].step, activation_quantizers(other)["head.input"].step
    assert not torch.equal(steps, changed)


def test_calibration_starts_each_step_at_the_mean_magnitude_of_what_it_sees():
    images = random_images()
    model = calibrated(Quantization(act_bits=4), images)
    stem = model.patch_embed.proj.input
    seen = []
    model.blocks[0].attn.softmax.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)

    torch.testing.assert_close(stem.step.detach().flatten(), (2 * images.abs().mean() / 127**0.5)[None])
    torch.testing.assert_close(
        model.blocks[0].attn.softmax.step.detach()[:, 0], 4 * seen[0].mean(dim=(0, 1, 3)) / 15**0.5
    )


@pytest.mark.parametrize("training", [False, True])
def test_calibration_leaves_mode_and_weights(training):
    model = converted().train(training)
    weights = {name: p.clone() for name, p in model.named_parameters() if not name.endswith(".step")}
    calibrate(model, random_images())

    assert training == model.training
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters() if name in weights)


def test_the_image_grid_is_decided_at_calibration_and_only_there():
    signed, unsigned = calibrated(), calibrated(images=random_images().abs())
    unsigned(random_images())

    assert signed.patch_embed.proj.input.grid == "signed"
    assert unsigned.patch_embed.proj.input.grid == "unsigned"


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("act_step", ["token", "tensor"])
@torch.no_grad()
def test_evaluation_does_not_depend_on_the_batch(attention, act_step):
    model = calibrated(Quantization(attention=attention, act_step=act_step), distilled=True, depth=2)
    images = random_images(6, seed=2)
    one_by_one = torch.cat([model(image[None]) for image in images])

    torch.testing.assert_close(model(images), one_by_one, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_reference_batch_only_scales_gradients():
    small, large = (convert(small_vit(), Quantization(), reference_batch=batch)[0].eval() for batch in (1, 64))
    for model in (small, large):
        calibrate(model, random_images())
    gradient_scales = [activation_quantizers(model)["head.input"].gradient_scale for model in (small, large)]

    assert torch.equal(small(random_images()), large(random_images()))
    assert gradient_scales[0] == pytest.approx(8 * gradient_scales[1])


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("weights", ["statsq", "lsq"])
@pytest.mark.parametrize("positive", [False, True])
@torch.no_grad()
def test_a_saved_model_continues_where_it_was(attention, weights, positive):
    config = Quantization(attention=attention, weights=weights)
    images = random_images().abs() if positive else random_images()
    model, fresh = calibrated(config, images), converted(config)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file))
    output = fresh(random_images(seed=3))

    assert ("unsigned" if positive else "signed") == fresh.patch_embed.proj.input.grid
    assert torch.equal(model(random_images(seed=3)), output)
    saved = model.state_dict()
    assert saved.keys() == fresh.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in fresh.state_dict().items())


def test_every_step_and_shift_learns():
    model = calibrated(distilled=True, depth=2)
    model(random_images(seed=4)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]

    assert without == []


def test_quantized_attention_refuses_masks():
    model = calibrated()

    with pytest.raises(ValueError, match="mask"):
        model.blocks[0].attn(torch.zeros(1, 17, 32), is_causal=True)


def test_an_uncalibrated_model_is_not_frozen():
    model = calibrated()
    model.blocks[0].mlp.fc1.input.initialized.fill_(False)

    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.fc1\.input.*calibrate"):
        freeze(model, Quantization(), PREPROCESSING, LABELS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.0.mlp.fc2.weight", "pos_embed", "head.input.step"])
def test_a_model_with_a_broken_number_is_not_frozen(name, value):
    model = calibrated()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value

    with pytest.raises(ModelError, match=name):
        freeze(model, Quantization(), PREPROCESSING, LABELS)
