"""The quantizers against their definitions, worked numbers and invariants.

StatsQ is section 4.1 of OFQ (ICML 2023), LSQ is Esser et al. (ICLR 2020).
"""

import pytest
import torch
from hypothesis import given
from torch import Tensor

from ofq_deploy.errors import RecipeError
from ofq_deploy.model.grids import code_range
from ofq_deploy.recipe import Quantization
from ofq_deploy.train.quantizers import (
    LsqFunction,
    LsqQuantizer,
    LsqWeight,
    StatsQ,
    lsq_codes,
    near_threshold,
    statsq_codes,
    statsq_units,
)
from tests.support.strategies import bits, quantized_activations, weights

ALL_BITS = range(2, 9)
ROWS = torch.tensor([[0.9, -0.1, 0.35, -0.65], [-2, 0, 0.5, 0.25], [0.5, -0.5, 0.5, -0.5]])
STATSQ_CODES = {
    2: [[1, -1, 0, -2], [-2, 0, 0, 0], [0, -2, 0, -2]],
    3: [[3, -1, 1, -3], [-4, 0, 1, 0], [2, -2, 2, -2]],
    4: [[7, -1, 2, -6], [-8, 0, 2, 1], [4, -4, 4, -4]],
    8: [[115, -13, 44, -84], [-128, 0, 46, 23], [64, -64, 64, -64]],
}
STATSQ_VALUES = {
    2: [[0.75, -0.25, 0.25, -0.75], [-1.03125, 0.34375, 0.34375, 0.34375]],
    3: [[0.875, -0.125, 0.375, -0.625], [-1.203125, 0.171875, 0.515625, 0.171875]],
    4: [[0.9375, -0.0625, 0.3125, -0.6875], [-1.2890625, 0.0859375, 0.4296875, 0.2578125]],
    8: [[0.902344, -0.097656, 0.347656, -0.652344], [-1.369629, 0.005371, 0.499512, 0.252441]],
}
STATSQ_TIES = {  # codes of w = -1, -1 + 1/n, ..., 1 at a scale of 1
    2: [-2, -2, 0, 0, 1],
    3: [-4, -4, -2, -2, 0, 0, 2, 2, 3],
    4: [-8, -8, -6, -6, -4, -4, -2, -2, 0, 0, 2, 2, 4, 4, 6, 6, 7],
}
X = torch.tensor([-1.3, -0.26, 0, 0.125, 0.375, 0.62, 2, -0.125])
LSQ_SIGNED = {  # bits: codes, gradient of x, gradient of the step before its scale, that scale, start step
    2: ([-2, -1, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0, 0, 1], 1.04, 0.35355339, 1.20125),
    3: ([-4, -1, 0, 0, 2, 2, 3, 0], [0, 1, 1, 1, 1, 1, 0, 1], -0.94, 0.20412415, 0.693542),
    4: ([-5, -1, 0, 0, 2, 2, 7, 0], [1, 1, 1, 1, 1, 1, 0, 1], 7.26, 0.13363062, 0.45402983),
    8: ([-5, -1, 0, 0, 2, 2, 8, 0], [1, 1, 1, 1, 1, 1, 1, 1], 0.26, 0.03137279, 0.10659370),
}
LSQ_UNSIGNED = {  # bits: codes of |x|, gradient of the step before its scale, start step
    2: ([3, 1, 0, 0, 2, 2, 3, 0], 4.98, 1.38708401),
    3: ([5, 1, 0, 0, 2, 2, 7, 0], 5.78, 0.90805966),
    4: ([5, 1, 0, 0, 2, 2, 8, 0], -1.22, 0.62032276),
    8: ([5, 1, 0, 0, 2, 2, 8, 0], -1.22, 0.15045038),
}


def lsq(bits: int, grid: str, step: float, elements: int = 8) -> LsqQuantizer:
    """A calibrated quantizer with one step per token, without shifts."""
    quantizer = LsqQuantizer(bits, grid, (1, 1), elements)  # type: ignore[arg-type]
    quantizer.initialized.fill_(True)
    with torch.no_grad():
        quantizer.step.fill_(step)
    return quantizer


def statsq_by_definition(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and values as the paper of OFQ writes StatsQ, rows of (almost) zeros kept finite."""
    n = 2 ** (bits - 1)
    scale = (2 * weight.abs().mean(1, keepdim=True)).clamp(min=1e-12)
    codes = torch.round(n * torch.clamp(weight / scale, -1, 1 - 1e-6) - 0.5).clamp(-n, n - 1)
    return codes, scale * ((codes + 0.5) / n)


def lsq_by_autograd(quantizer: LsqQuantizer, x: Tensor) -> Tensor:
    """LSQ from ordinary operations and straight-through differences that are exactly zero in value."""
    assert quantizer.before is not None
    step, g = quantizer.step, quantizer.gradient_scale
    step = step.detach().clamp(min=1e-5) + (step * g - (step * g).detach())
    units = (x + quantizer.before) / step
    limited = units.detach().clamp(quantizer.low, quantizer.high)
    units = torch.where(units == limited, units, limited)  # the limits themselves still pass the gradient
    codes = units.detach().round() + (units - units.detach())
    return codes * step + quantizer.after


@pytest.mark.parametrize("bits", STATSQ_CODES)
def test_statsq_codes_and_values_of_the_worked_rows(bits):
    codes, step = statsq_codes(ROWS, bits)

    assert STATSQ_CODES[bits] == codes.tolist()
    torch.testing.assert_close(step[:, 0] * 2**bits, torch.tensor([1.0, 1.375, 1.0]))
    torch.testing.assert_close(StatsQ(bits)(ROWS)[:2], torch.tensor(STATSQ_VALUES[bits]), atol=5e-7, rtol=0)


@pytest.mark.parametrize("bits", STATSQ_TIES)
def test_statsq_ties_go_to_the_even_code(bits):
    n = 2 ** (bits - 1)
    ladder = torch.arange(-n, n + 1) / n
    row = torch.cat([ladder, 1 - ladder.abs()])[None]  # the mean magnitude is 1/2, the scale 1

    assert row.abs().mean() == 0.5
    assert STATSQ_TIES[bits] == statsq_codes(row, bits)[0][0, : len(ladder)].tolist()


@given(weights(), bits)
def test_statsq_follows_its_definition(weight, bits):
    codes, values = statsq_by_definition(weight, bits)

    torch.testing.assert_close(statsq_codes(weight, bits)[0], codes, atol=0, rtol=0)
    torch.testing.assert_close(StatsQ(bits)(weight), values, atol=0, rtol=0)


@given(weights(), bits)
def test_statsq_codes_stay_on_the_grid(weight, bits):
    low, high = code_range("half", bits)
    coded = StatsQ(bits).coded(weight)

    assert torch.int8 == coded.codes.dtype
    assert low <= coded.codes.min()
    assert coded.codes.max() <= high
    assert torch.isfinite(coded.step).all()
    assert (coded.step > 0).all()


@given(weights(), bits)
def test_weight_codes_reproduce_the_value_that_the_network_sees(weight, bits):
    for quantizer in (StatsQ(bits), LsqWeight(bits, weight)):
        assert torch.equal(quantizer(weight), quantizer.coded(weight).dequantize())


@given(weights(), bits)
def test_float64_weights_have_the_codes_of_float32(weight, bits):
    codes, step = statsq_codes(weight.double(), bits)

    assert torch.equal(statsq_codes(weight, bits)[0], codes)
    assert torch.equal(statsq_codes(weight, bits)[1], step)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_half_precision_weights_reach_no_extra_level(bits, dtype):
    weight = torch.linspace(-2, 2, 1001)[None].to(dtype)

    assert statsq_codes(weight.float(), bits)[0].tolist() == statsq_codes(weight, bits)[0].tolist()
    assert 2 ** (bits - 1) - 1 == statsq_codes(weight, bits)[0].max()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_quantizer_reaches_all_its_codes_and_no_other(bits):
    low, high = code_range("signed", bits)
    ramp = torch.linspace(-1.5, 1.5, 4096)[None]
    lsq_weight = LsqWeight(bits, ramp)
    with torch.no_grad():
        lsq_weight.step.fill_(2.0**-bits)

    assert list(range(low, high + 1)) == StatsQ(bits).coded(ramp).codes.unique().tolist()
    assert list(range(low, high + 1)) == lsq_weight.coded(ramp).codes.unique().tolist()
    assert list(range(low, high + 1)) == lsq(bits, "signed", 2.0**-bits).coded(ramp[None]).codes.unique().tolist()
    assert list(range(2**bits)) == lsq(bits, "unsigned", 2.0**-bits).coded(ramp[None]).codes.unique().tolist()


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_other_bit_widths_are_refused(bits):
    with pytest.raises(ValueError, match="2 to 8"):
        LsqQuantizer(bits, "signed", (1,), 1)
    with pytest.raises(ValueError, match="2 to 8"):
        LsqWeight(bits, ROWS)
    with pytest.raises(RecipeError, match="2 to 8"):
        Quantization(weight_bits=bits)
    with pytest.raises(RecipeError, match="2 to 8"):
        Quantization(act_bits=bits)


@pytest.mark.parametrize("bits", STATSQ_CODES)
def test_statsq_passes_every_gradient(bits):
    weight, upstream = ROWS.clone().requires_grad_(), torch.arange(12.0).view(3, 4) - 5
    StatsQ(bits)(weight).backward(upstream)

    assert upstream.tolist() == weight.grad.tolist()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_row_of_zeros_is_finite_in_value_and_gradient(bits):
    for quantizer in (StatsQ(bits), LsqWeight(bits, torch.zeros(2, 8))):
        weight = torch.zeros(2, 8, requires_grad=True)
        value = quantizer(weight)
        value.sum().backward()

        assert value.abs().max() < 1e-6
        assert torch.ones(2, 8).tolist() == weight.grad.tolist()


def test_statsq_scale_is_twice_the_mean_magnitude_at_every_width():
    steps = [statsq_codes(ROWS, bits)[1][:, 0] * 2**bits for bits in ALL_BITS]

    for step in steps:
        torch.testing.assert_close(torch.tensor([1.0, 1.375, 1.0]), step)


@pytest.mark.parametrize("bits", LSQ_SIGNED)
def test_lsq_signed_worked_numbers(bits):
    codes, grad_x, grad_step, gradient_scale, start = LSQ_SIGNED[bits]
    quantizer, x = lsq(bits, "signed", 0.25), X.clone()[None, None].requires_grad_()
    value = quantizer(x)
    value.sum().backward()

    assert codes == quantizer.coded(x).codes.flatten().tolist()
    assert [code * 0.25 for code in codes] == value.flatten().tolist()
    assert grad_x == x.grad.flatten().tolist()
    assert gradient_scale == pytest.approx(quantizer.gradient_scale, abs=1e-8)
    assert grad_step == pytest.approx(quantizer.step.grad.item() / gradient_scale, abs=1e-5)
    assert start == pytest.approx(calibrated_step(quantizer, x), rel=2e-6)


@pytest.mark.parametrize("bits", LSQ_UNSIGNED)
def test_lsq_unsigned_worked_numbers(bits):
    codes, grad_step, start = LSQ_UNSIGNED[bits]
    quantizer, x = lsq(bits, "unsigned", 0.25), X.abs()[None, None]
    quantizer(x).sum().backward()

    assert codes == quantizer.coded(x).codes.flatten().tolist()
    assert grad_step == pytest.approx(quantizer.step.grad.item() / (8 * (2**bits - 1)) ** -0.5, abs=1e-5)
    assert start == pytest.approx(calibrated_step(quantizer, x), rel=2e-6)


def calibrated_step(quantizer: LsqQuantizer, x: Tensor) -> float:
    quantizer.calibrating = True
    quantizer(x.detach())
    return quantizer.step.item()


def test_a_negative_step_acts_as_the_floor_and_keeps_learning():
    quantizer = lsq(2, "signed", -0.5)
    value = quantizer(torch.tensor([[[0.3, -0.2]]]))
    value.sum().backward()

    torch.testing.assert_close(torch.tensor([[[1e-5, -2e-5]]]), value)
    assert (1 - 2) * quantizer.gradient_scale == pytest.approx(quantizer.step.grad.item())


@pytest.mark.parametrize("grid", ["signed", "unsigned"])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_lsq_rounds_halves_to_even(bits, grid):
    low, high = code_range(grid, bits)
    halves = torch.arange(low, high) + 0.5
    expected = torch.arange(low, high) + torch.arange(low, high) % 2

    assert torch.equal(expected.float(), lsq_codes(halves * 0.25, torch.tensor(0.25), low, high))


@given(quantized_activations())
def test_lsq_codes_stay_on_the_grid_and_reproduce_the_value(drawn):
    quantizer, x = drawn
    coded = quantizer.coded(x)
    low, high = code_range(quantizer.grid, quantizer.bits)

    assert low <= coded.codes.min()
    assert coded.codes.max() <= high
    assert torch.equal(quantizer(x), coded.dequantize())


@given(quantized_activations())
def test_lsq_trains_on_the_value_that_it_evaluates(drawn):
    quantizer, x = drawn

    assert torch.equal(quantizer.train()(x), quantizer.eval()(x))


@given(quantized_activations(shifts=False))
def test_lsq_is_idempotent_at_a_fixed_step(drawn):
    quantizer, x = drawn
    once = quantizer(x)

    assert torch.equal(once, quantizer(once))


@given(weights(), bits)
def test_lsq_weights_are_idempotent_at_a_fixed_step(weight, bits):
    quantizer = LsqWeight(bits, weight)
    once = quantizer(weight)

    assert torch.equal(once, quantizer(once))
    assert torch.equal(once, quantizer.eval()(weight))


@given(quantized_activations())
def test_lsq_gradients_are_those_of_a_straight_through_composition(drawn):
    quantizer, x = drawn
    quantizer, x = quantizer.double(), x.double().clamp(-1e6, 1e6).requires_grad_()
    for name in ("before", "after"):
        if getattr(quantizer, name) is None:
            setattr(quantizer, name, torch.nn.Parameter(torch.zeros(x.shape[-1], dtype=torch.float64)))
    leaves = [x, quantizer.step, quantizer.before, quantizer.after]
    upstream = torch.linspace(-1, 1.7, x.numel(), dtype=torch.float64).view_as(x)
    by_autograd = lsq_by_autograd(quantizer, x)
    expected = torch.autograd.grad(by_autograd, leaves, upstream)
    actual = torch.autograd.grad(quantizer(x), leaves, upstream)

    assert torch.equal(by_autograd, quantizer(x))
    for gradient, from_function in zip(expected, actual, strict=True):
        torch.testing.assert_close(from_function, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grid", ["signed", "unsigned"])
def test_the_limits_of_the_range_are_inside_it(grid):
    low, high = code_range(grid, 3)
    x = (torch.tensor([low - 1.0, low, high, high + 1]) * 0.5)[None, None].requires_grad_()
    lsq(3, grid, 0.5)(x).sum().backward()

    assert x.grad.flatten().tolist() == [0, 1, 1, 0]


def test_the_gradient_scale_counts_the_reference_batch_and_not_the_batch_at_hand():
    quantizer = LsqQuantizer(4, "signed", (3, 1), 8, reference_batch=50)
    gradients = []
    for copies in (1, 2):
        quantizer.initialized.fill_(True)
        quantizer.zero_grad()
        quantizer(X.repeat(copies, 3, 1) * 0.7).sum().backward()
        gradients.append(quantizer.step.grad.clone())

    assert quantizer.gradient_scale == pytest.approx((7 * 8 * 50) ** -0.5)
    torch.testing.assert_close(2 * gradients[0], gradients[1])


def test_lsq_weight_starts_from_the_mean_magnitude_of_each_row():
    quantizer = LsqWeight(4, ROWS)

    torch.testing.assert_close(torch.tensor([1.0, 1.375, 1.0]) / 7**0.5, quantizer.step.detach()[:, 0])
    assert quantizer.gradient_scale == pytest.approx((7 * 4) ** -0.5)


def test_lsq_weight_learns_one_step_per_row():
    quantizer, weight = LsqWeight(2, torch.stack([X, 2 * X])), torch.stack([X, 2 * X]).requires_grad_()
    with torch.no_grad():
        quantizer.step.copy_(torch.tensor([[0.25], [0.5]]))
    quantizer(weight).sum().backward()

    assert [LSQ_SIGNED[2][1]] * 2 == weight.grad.tolist()
    torch.testing.assert_close(quantizer.step.grad / quantizer.gradient_scale, torch.full((2, 1), 1.04))


def test_an_activation_quantizer_without_steps_says_so():
    with pytest.raises(RuntimeError, match="calibrate"):
        LsqQuantizer(4, "signed", (1,), 8)(X)


def test_a_disabled_activation_quantizer_still_shifts():
    quantizer = LsqQuantizer(4, "signed", (1,), 8, before=(8,), after=(8,))
    with torch.no_grad():
        quantizer.before.fill_(0.5)
        quantizer.after.fill_(0.25)
    quantizer.enabled = False

    assert torch.equal(X + 0.75, quantizer(X))


def test_lsq_value_needs_no_shift_arguments():
    step = torch.tensor(0.25)

    assert torch.equal(lsq_codes(X, step, -8, 7) * step, LsqFunction.apply(X, step, None, None, -8, 7, 1.0))


@pytest.mark.parametrize("bits", [2, 3])
def test_undecided_weights_of_the_worked_row(bits):
    row = torch.tensor([[0, 0.001, -0.5, 0.4985, 0.75, 1.2, -1.2, 0.251]])
    units = [-0.5, -0.498182, -1.408988, 0.406261, 0.863482, 1.499998, -2.5, -0.043688]

    torch.testing.assert_close(statsq_units(row, 2)[0], torch.tensor([units]), atol=2e-6, rtol=0)
    assert StatsQ(bits).trainable(row, 0.005).tolist() == [[True, True] + [False] * 6]


@given(weights(), bits)
def test_undecided_weights_lie_beside_a_threshold_between_two_codes(weight, bits):
    units, n = statsq_units(weight, bits)[0], 2 ** (bits - 1)
    thresholds = torch.arange(-n, n - 1) + 0.5
    expected = ((units[..., None] - thresholds).abs() <= 0.005).any(-1)

    assert torch.equal(expected, near_threshold(units, bits, 0.005))
