"""Packed weights: every width round-trips, takes the bytes it should, and ONNX Runtime decodes it."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ofq_deploy.export.builder import Builder
from ofq_deploy.export.packing import packed_bytes, storage, weight
from ofq_deploy.model.file import decoder, read_model
from ofq_deploy.model.frozen import CodedLinear
from ofq_deploy.model.planes import pack_planes, unpack_planes
from ofq_deploy.runtime_tests.runners.ort import open_session, run_all

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=13)


@given(st.data(), st.integers(2, 8), SHAPES)
def test_planes_round_trip_at_true_width(data: st.DataObject, bits: int, shape: tuple[int, int]) -> None:
    half = 2 ** (bits - 1)
    codes = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-half, half - 1)))

    packed = pack_planes(codes, bits)

    assert -(-bits * codes.size // 8) == packed.nbytes
    np.testing.assert_array_equal(codes, unpack_planes(packed, bits, shape))


@pytest.mark.parametrize("grid", ["half", "signed"])
@pytest.mark.parametrize("opset", [20, 21, 25])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(8, 16), (5, 3), (7, 9)])
def test_runtime_decodes_every_storage(bits: int, opset: int, grid: str, shape: tuple[int, int]) -> None:
    half = 2 ** (bits - 1)
    codes = np.random.default_rng(bits).integers(-half, half, shape).astype(np.int8)
    codes.flat[:2] = -half, half - 1
    steps = np.ones(shape[0], dtype=np.float32)
    linear = CodedLinear(codes, grid, bits, steps, steps, None)  # type: ignore[arg-type]
    builder = Builder()
    value = weight(builder, "layer", linear, storage(linear.bits, opset))
    assert value.name
    image = ir.Value(name="image", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    out = builder.op("Identity", [image], "logits")
    out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1])
    model = ir.serde.serialize_model(builder.model(image, out, opset, [], {}))

    (decoded,) = run_all(open_session(decoder(model, [value.name])), {}).values()
    stored = [tensor for tensor in model.graph.initializer if tensor.name.startswith("layer.weight")]

    expected = codes if grid == "half" and bits == 8 else linear.integers
    np.testing.assert_array_equal(expected.T, decoded)
    assert [packed_bytes(bits, codes.size)] == [len(tensor.raw_data) for tensor in stored]
    assert np.int8 == decoded.dtype


def test_storage_by_opset() -> None:
    assert [storage(4, opset) for opset in (20, 20, 21)] == ["planes", "planes", "INT4"]
    assert [storage(2, opset) for opset in (24, 25)] == ["planes", "INT2"]
    assert [storage(3, opset) for opset in (20, 25)] == ["planes"] * 2
    assert [storage(bits, 25) for bits in range(5, 9)] == ["INT8"] * 4


def test_decoder_of_a_whole_model_needs_no_input(portable_model: Path) -> None:
    model = read_model(portable_model)
    names = [node.output[0] for node in model.graph.node if node.output[0].endswith(".weight")]

    decoded = run_all(open_session(decoder(model, names)), {})

    assert names == list(decoded)
    assert all(value.dtype == np.int8 for value in decoded.values())
