"""Small valid nodes of the fused operators, to be spoilt: attributes, constants and fed inputs by their names in docs/kernels.md."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ofq_deploy.kernels import DOMAIN, library_path
from ofq_deploy.model.planes import pack_planes
from ofq_deploy.model.tiles import LANES, LINE, QUAD, lines_of, round_up, tiles_of, untile_codes, untile_floats

Array = NDArray[Any]
NAME = "blocks.3.spoilt"  # of the node; every refusal gives it

INPUTS = {
    "Patches": ["image", "reciprocal", "before?"],
    "LayerNorm": ["residual", "gamma", "beta", "reciprocal?"],
    "Linear": [
        *("codes", "weight", "scale?", "bias?", "in_step?", "out_reciprocal?", "shift?", "rising?", "falling?"),
    ],
    "LinearAdd": ["codes", "weight", "scale", "bias", "residual", "in_step?"],
    "LinearHead": ["codes", "weight", "scale", "bias", "add?"],
    "Attention": [
        *("q", "k", "v", "scale", "context_scale", "context_bias", "p_reciprocal", "exp_table?", "query_step?"),
        *("key_shift?", "key_shift_step?", "key_bias?", "other?", "key_bias_step?", "row_sum?", "p_step?"),
        *("out_reciprocal?", "forced?"),
    ],
}
POSITIVE = {
    "reciprocal",
    "in_step",
    "out_reciprocal",
    "p_reciprocal",
    "query_step",
    "key_shift_step",
    "key_bias_step",
    "p_step",
}
FLOAT_OUTPUTS = {"LinearAdd", "LinearHead"}


@dataclass(frozen=True)
class Fused:
    """A node: what is not among its constants or fed inputs is absent.

    outputs: how many are named
    """

    kind: str
    attributes: Mapping[str, int | float]
    constants: Mapping[str, Array]
    fed: Mapping[str, Array]
    outputs: int = 1

    def requires(self, name: str) -> bool:
        """Whether the operator has no form without that input."""
        return name in INPUTS[self.kind]

    def with_attributes(self, **changes: int | float | None) -> "Fused":
        return replace(self, attributes=_changed(self.attributes, changes))

    def with_constants(self, **changes: Array | None) -> "Fused":
        return replace(self, constants=_changed(self.constants, changes))

    def with_fed(self, **changes: Array | None) -> "Fused":
        return replace(self, fed=_changed(self.fed, changes))

    def model(self, batch: str | int | None = None) -> onnx.ModelProto:
        """batch: the first axis, or its name, of declared shapes; None declares no shapes at all."""
        ports = [port.rstrip("?") for port in INPUTS[self.kind]]
        names = [name if name in self.constants or name in self.fed else "" for name in ports]
        while not names[-1]:
            names.pop()
        made = helper.make_node(self.kind, names, [f"out{i}" for i in range(self.outputs)], name=NAME, domain=DOMAIN)
        made.attribute.extend(helper.make_attribute(name, value) for name, value in self.attributes.items())
        inputs = [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(value.dtype),
                None if batch is None else [batch, *value.shape[1:]],
            )
            for name, value in self.fed.items()
        ]
        first = TensorProto.FLOAT if self.kind in FLOAT_OUTPUTS else TensorProto.UINT8
        types = [first, TensorProto.UINT8][: self.outputs]
        outputs = [helper.make_tensor_value_info(f"out{i}", kind, None) for i, kind in enumerate(types)]
        constants = [numpy_helper.from_array(np.array(v, order="C"), name) for name, v in self.constants.items()]
        graph = helper.make_graph([made], "graph", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def session(self, batch: str | int | None = None, threads: int = 1) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what is refused is read from the exception
        options.register_custom_ops_library(str(library_path()))
        return ort.InferenceSession(self.model(batch).SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, session: ort.InferenceSession | None = None) -> list[Array]:
        """Outputs as they lie in memory."""
        return list((session or self.session()).run(None, dict(self.fed)))

    def read(self, session: ort.InferenceSession | None = None) -> list[Array]:
        """Outputs without the tokens and channels that only fill up tiles, which may hold anything."""
        first, *others = self.run(session)
        given = self.attributes
        if self.kind == "Patches":
            width = first.shape[2] * QUAD  # parts are filled up with a code
        elif self.kind == "Attention":
            width = int(given["heads"] * given["value_width"])
        else:
            width = int(given["width"])
        if self.kind != "LinearHead":
            untile = untile_floats if self.kind in FLOAT_OUTPUTS else untile_codes
            first = untile(first, int(given.get("rows", given["tokens"])), width)
        return [first, *others]


def _changed(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """With some entries replaced; those that become None are left out."""
    return {name: value for name, value in {**old, **changes}.items() if value is not None}


def floats(seed: int, *shape: int) -> Array:
    """float32 in 0.5 .. 1.5: fit for steps too."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32) + np.float32(0.5)


def codes(batch: int, tokens: int, width: int, bits: int = 4) -> Array:
    shape = (batch, tiles_of(tokens), lines_of(width), LINE)
    return np.random.default_rng(width).integers(0, 2**bits, shape, dtype=np.uint8)


def residual(batch: int, tokens: int, width: int) -> Array:
    return floats(width, batch, tiles_of(tokens), round_up(width, LANES), LANES) - np.float32(1)


def planes(outputs: int, inputs: int, bits: int = 3) -> Array:
    values = np.random.default_rng(outputs).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (outputs, inputs))
    return pack_planes(values.astype(np.int8), bits)


def grid(name: str, bits: int = 4, signed: int = 1) -> dict[str, int]:
    return {f"{name}_bits": bits, f"{name}_signed": signed}


TOKENS = 20


def patches() -> Fused:
    attributes = {"channels": 3, "patch": 4, "first": 1, "tokens": 10, "parts": 3, **grid("out", 8)}
    constants = {"reciprocal": floats(0, 3) * 20, "before": floats(1, 12, 12) - np.float32(1)}
    return Fused("Patches", attributes, constants, {"image": floats(2, 2, 3, 12, 12)})


def layer_norm() -> Fused:
    attributes = {"width": 24, "tokens": TOKENS, "epsilon": 1e-6, **grid("out")}
    constants = {"gamma": floats(0, 24), "beta": floats(1, 24), "reciprocal": floats(2, TOKENS)}
    return Fused("LayerNorm", attributes, constants, {"residual": residual(2, TOKENS, 24)})


def linear() -> Fused:
    """With steps of tokens and heads, GELU and a shift behind it."""
    attributes = {"inputs": 24, "width": 40, "tokens": TOKENS, "heads": 2, "gelu": 1, "weight_bits": 3, "half": 1}
    constants = {
        "weight": planes(40, 24),
        "scale": floats(0, 40) / 50,
        "bias": floats(1, 40),
        "in_step": floats(2, TOKENS + 3),
        "out_reciprocal": floats(3, TOKENS, 2),
        "shift": floats(4, 40),
    }
    return Fused("Linear", attributes | grid("in") | grid("out", 4, 0), constants, {"codes": codes(2, TOKENS, 24)})


def thresholds() -> Fused:
    """A Linear whose codes are counts of thresholds."""
    absent = dict.fromkeys(("scale", "bias", "in_step", "out_reciprocal", "shift"))
    random = np.random.default_rng(5)
    rising = np.sort(random.integers(-50, 300, (40, 15)), axis=1).astype(np.int16)
    falling = random.integers(-67, -60, (40, 1)) - np.arange(2)
    return linear().with_constants(**absent).with_constants(rising=rising, falling=falling.astype(np.int16))


def linear_add() -> Fused:
    attributes = {
        "inputs": 24,
        "parts": 2,
        "width": 40,
        "tokens": TOKENS,
        "weight_bits": 3,
        "half": 0,
        **grid("in", 4, 0),
    }
    constants = {
        "weight": planes(40, 48),
        "scale": floats(0, 2, 40) / 50,
        "bias": floats(1, 40),
        "in_step": floats(2, TOKENS),
    }
    return Fused(
        "LinearAdd", attributes, constants, {"codes": codes(2, TOKENS, 128), "residual": residual(2, TOKENS, 40)}
    )


def linear_head() -> Fused:
    attributes = {"inputs": 24, "width": 10, "token": 1, "weight_bits": 8, "half": 1, **grid("in", 8)}
    constants = {"weight": planes(10, 24, 8), "scale": floats(0, 10), "bias": floats(1, 10)}
    return Fused("LinearHead", attributes, constants, {"codes": codes(2, TOKENS, 24, 8), "add": floats(2, 2, 10)})


def attention() -> Fused:
    """With steps of tokens and everything that they bring; 17 of the 20 tokens ask."""
    heads, width, rows = 2, 8, 17
    attributes = {
        "heads": heads,
        "tokens": TOKENS,
        "rows": rows,
        "width": width,
        "value_width": 4,
        "shared": 0,
        "p_bits": 4,
    }
    attributes |= {**grid("q"), **grid("k"), **grid("v"), **grid("out"), **grid("other", 3)}
    constants = {
        "scale": floats(0, TOKENS, heads) / 20,
        "context_scale": floats(1, heads * 4),
        "context_bias": floats(2, heads * 4),
        "p_reciprocal": floats(3, rows) * 15,
        "query_step": floats(4, rows),
        "key_shift": floats(5, heads, width) / 20,
        "key_shift_step": floats(6, TOKENS, heads),
        "key_bias": floats(7, heads, 12) / 20,
        "key_bias_step": floats(8, TOKENS),
        "row_sum": floats(9, heads * 4) / 20,
        "p_step": floats(10, rows) / 15,
        "out_reciprocal": floats(11, rows),
    }
    fed = {
        "q": codes(2, rows, heads * width),
        "k": codes(2, TOKENS, heads * width),
        "v": codes(2, TOKENS, heads * 4),
        "other": codes(2, TOKENS, 12, 3),
        "forced": np.random.default_rng(12).integers(0, 16, (2, heads, rows, TOKENS), dtype=np.uint8),
    }
    return Fused("Attention", attributes, constants, fed, outputs=2)


def tabled_attention() -> Fused:
    """With one scale, and a table of its powers."""
    scale = np.float32(0.05)
    counts = ((32, 32), (1, 32), (1024, 16))
    table = np.concatenate([2.0 ** (-float(scale) * factor * np.arange(count)) for factor, count in counts])
    steps = dict.fromkeys(("query_step", "key_shift_step", "key_bias_step", "p_step", "out_reciprocal"))
    made = attention().with_constants(**steps)
    return made.with_constants(scale=scale.reshape(1), exp_table=table.astype(np.float32), p_reciprocal=floats(3, 1))
