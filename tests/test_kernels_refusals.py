"""No node and no run is trusted: whatever is wrong with it is refused in one line that names the node.

Every fault is made in a small valid node of each operator; a process that dies of one fails the whole file.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.support import fused_nodes
from tests.support.fused_nodes import FLOAT_OUTPUTS, NAME, POSITIVE, Array, Fused
from tests.support.kernels import needs_kernels

pytestmark = needs_kernels

NODES: dict[str, Callable[[], Fused]] = {
    "Patches": fused_nodes.patches,
    "LayerNorm": fused_nodes.layer_norm,
    "Linear": fused_nodes.linear,
    "Linear by thresholds": fused_nodes.thresholds,
    "LinearAdd": fused_nodes.linear_add,
    "LinearHead": fused_nodes.linear_head,
    "Attention": fused_nodes.attention,
    "Attention by table": fused_nodes.tabled_attention,
}
SIZES = {"channels", "patch", "first", "parts", "inputs", "width", "value_width", "heads", "rows"}
SMALLEST = {"first": 0, "token": 0, "gelu": 0, "half": 0, "shared": 0}
Fault = tuple[str, Fused, str]  # what it is, the node, and what the refusal must name beside it


def spoilt_attributes(node: Fused) -> Iterator[Fault]:
    for name, value in node.attributes.items():
        yield f"{name} is missing", node.with_attributes(**{name: None}), name
        yield f"{name} has another type", node.with_attributes(**{name: 1.5 if isinstance(value, int) else 1}), name
        wrong: list[int | float] = [-1, 2**31 - 1, 2**31, 2**40, -(2**63)]
        if not isinstance(value, int):
            wrong = [0.0, -1e-6, float("nan"), float("inf")]
        elif name.endswith("bits"):
            wrong += [0, 1, 9, 192]
        elif name.endswith("signed") or name in ("gelu", "half", "shared"):
            wrong += [2]
        elif name not in SMALLEST:
            wrong += [0]
        for other in wrong:
            yield f"{name} = {other}", node.with_attributes(**{name: other}), name
        if name in SIZES and not (name == "heads" and "rising" in node.constants):
            yield f"{name} = {value} + 1", node.with_attributes(**{name: value + 1}), ""
            if value - 1 > SMALLEST.get(name, 0):
                yield f"{name} = {value} - 1", node.with_attributes(**{name: value - 1}), ""


def spoilt_constants(node: Fused) -> Iterator[Fault]:
    for name, value in node.constants.items():
        is_step, last = name in POSITIVE, value.shape[-1]

        def other(changed: Array | None, name: str = name) -> Fused:
            return node.with_constants(**{name: changed})

        if node.requires(name):
            yield f"{name} is missing", other(None), ""  # the runtime says its number
        yield f"{name} of one axis more", other(value[None]), name
        if name != "falling":
            yield f"{name} is empty", other(value[..., :0]), name
        if value.ndim == 1:
            yield f"{name} is a scalar", other(value[0]), name
        elif not is_step:
            yield f"{name} is flat", other(value.ravel()), name
        if name not in ("falling", "key_bias"):  # the others' sizes are given
            yield f"{name} is too short", other(value[..., : 2 * last // 3]), name
            if not (is_step and value.ndim == 1 and last > 1):  # there may be steps for more tokens
                yield f"{name} is short of one", other(value[..., : last - 1]), name
                yield f"{name} is too long", other(np.concatenate([value, value[..., :1]], axis=-1)), name
        wide = {np.float32: np.float64, np.uint8: np.int8, np.int16: np.int32}[value.dtype.type]
        yield f"{name} is {wide.__name__}", other(value.astype(wide)), name
        if value.dtype == np.float32:
            for place in (0, -1):
                for number in (np.nan, np.inf, -np.inf, *((0, -0.5) if is_step else ())):
                    changed = value.copy()
                    changed.flat[place] = number
                    yield f"{name}[{place}] = {number}", other(changed), name
        yield f"{name} is fed", other(None).with_fed(**{name: value}), name


def spoilt_feeds(node: Fused) -> Iterator[Fault]:
    for name, value in node.fed.items():

        def other(changed: Array | None, name: str = name) -> Fused:
            return node.with_fed(**{name: changed})

        if node.requires(name):
            yield f"{name} is missing", other(None), ""
        yield f"{name} of one axis less", other(value[0]), name
        yield f"{name} of one axis more", other(value[None]), name
        yield f"{name} of six axes", other(value.reshape(1, 1, 1, *value.shape)), name
        wide = {np.float32: np.float64, np.uint8: np.int8}[value.dtype.type]
        yield f"{name} is {wide.__name__}", other(value.astype(wide)), name
        for axis, size in enumerate(value.shape):
            sizes = {0, size - 1, size + 1, 2 * size}
            if axis == 0 and len(node.fed) == 1:
                continue  # any batch is one
            if axis == 0 and name == "residual":
                sizes -= {1}  # one for all
            if axis == 1 and value.ndim == 4 and name not in ("image", "forced"):
                sizes = {0, size - 1}  # more tiles may be handed over than are read
            if name == "codes" and "token" in node.attributes and axis == 1:
                sizes = {0}  # whose first tile is enough for its token
            for wrong in sizes:
                kept = np.resize(value, tuple(wrong if own == axis else n for own, n in enumerate(value.shape)))
                yield f"{name} has {wrong} on axis {axis}", other(kept), ""


def refusal(node: Fused) -> str:
    """What the runtime says, or "" where it computed."""
    try:
        node.run()
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", NODES)
def test_valid_nodes_run(name: str) -> None:
    node = NODES[name]()
    outputs = node.run()

    assert len(outputs) == node.outputs
    assert outputs[0].dtype == (np.float32 if node.kind in FLOAT_OUTPUTS else np.uint8)
    assert np.isfinite(outputs[0]).all()
    assert len(np.unique(outputs[0])) > 2  # they compute something


@pytest.mark.parametrize("spoilt", [spoilt_attributes, spoilt_constants, spoilt_feeds])
@pytest.mark.parametrize("name", NODES)
def test_every_fault_is_refused_with_the_nodes_name(name: str, spoilt: Callable[[Fused], Iterator[Fault]]) -> None:
    wrong = {}
    for what, node, named in spoilt(NODES[name]()):
        said = refusal(node)
        if NAME not in said or named not in said or "\n" in said.strip():
            wrong[what] = said

    assert wrong == {}


def exactly(node: Fused, **changes: Any) -> Fused:
    """Constants, attributes or fed inputs, wherever the name is."""
    for name, value in changes.items():
        if name in node.attributes:
            node = node.with_attributes(**{name: value})
        elif name in node.fed:
            node = node.with_fed(**{name: value})
        else:
            node = node.with_constants(**{name: value})
    return node


linear, attention, tabled = fused_nodes.linear(), fused_nodes.attention(), fused_nodes.tabled_attention()
counted, added, patches = fused_nodes.thresholds(), fused_nodes.linear_add(), fused_nodes.patches()


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (exactly(linear, width=0), "attribute width is 0, expected 1 .. 1048576"),
        (exactly(linear, in_bits=192), "attribute in_bits is 192, expected 2 .. 8"),
        (exactly(linear, half=None), "attribute half is missing or no integer"),
        (exactly(linear, heads=4), "attribute heads is 4: heads of 40 / 4 channels, expected a multiple of 4"),
        (exactly(linear, weight=linear.constants["weight"][:-1]), "input weight is uint8 [359], expected uint8 [360]"),
        (
            exactly(linear, bias=np.zeros((1, 1), dtype=np.float32)),
            "input bias is float32 [1, 1], expected float32 [40]",
        ),
        (
            exactly(linear, out_reciprocal=np.ones((19, 2), dtype=np.float32)),
            "input out_reciprocal is float32 [19, 2], expected float32 [20 or more] or float32 [20 or more, 2]",
        ),
        (
            exactly(linear, in_step=np.zeros(20, dtype=np.float32)),
            "input in_step holds 0.000000 at 0, expected finite numbers above 0",
        ),
        (
            exactly(linear, codes=linear.fed["codes"][:, :1]),
            "input codes is uint8 [2, 1, 16, 64], expected uint8 [batch, 2 or more, 16, 64]",
        ),
        (exactly(linear, gelu=0), "input shift is there without gelu"),
        (exactly(linear, rising=counted.constants["rising"]), "inputs rising and scale exclude each other"),
        (exactly(counted, rising=counted.constants["rising"][:, ::-1]), "input rising of channel 0 does not ascend"),
        (
            exactly(counted, falling=counted.constants["falling"][:, ::-1]),
            "input falling of channel 0 does not descend",
        ),
        (
            exactly(counted, falling=np.full((40, 1), -32767, dtype=np.int16)),
            "input falling of channel 0 holds -32767, expected numbers within +-32766",
        ),
        (exactly(counted, rising=None), "input falling is there without rising"),
        (
            exactly(fused_nodes.linear_head(), inputs=26, weight=fused_nodes.planes(10, 26, 8)),
            "attribute inputs is 26, expected a multiple of 4 with 9-bit integers",
        ),
        (
            exactly(added, residual=fused_nodes.residual(3, 20, 40)),
            "input residual has a batch of 3, expected 1 or that of codes, 2",
        ),
        (exactly(patches, tokens=12), "attributes tokens and first leave 11 patches, which fill no square"),
        (exactly(patches, parts=2), "attribute parts is 2: 3 channels cannot be cut into them"),
        (
            exactly(patches, patch=2000, before=None),
            "attribute patch is 2000: an image of 6000 pixels a side, expected at most 4096",
        ),
        (exactly(attention, width=6), "attribute width is 6, expected a multiple of 4"),
        (
            exactly(attention, k_bits=8, k_signed=0),
            "grid k is unsigned with 8 bits, expected at most 7 bits or a sign",
        ),
        (exactly(attention, key_shift=None), "input key_shift_step is there without key_shift"),
        (exactly(attention, key_bias=None), "inputs key_bias and other belong together"),
        (exactly(attention, key_bias=None).with_fed(other=None), "input key_bias_step is there without key_bias"),
        (
            exactly(attention, exp_table=tabled.constants["exp_table"]),
            "input exp_table asks for one scale and no query_step",
        ),
        (
            exactly(tabled, exp_table=np.ones(80, dtype=np.float32)),
            "input exp_table holds 1.000000 at 1, expected 0.329877",
        ),
        (
            exactly(attention, forced=attention.fed["forced"][:, :1]),
            "input forced is uint8 [2, 1, 17, 20], expected uint8 [2, 2, 17, 20]",
        ),
    ],
)
def test_the_refusal_says_what_is_and_what_was_expected(node: Fused, expected: str) -> None:
    assert refusal(node).endswith(f"ofq.{node.kind} '{NAME}': {expected}")
