"""A thin layer over onnx_ir: nodes and constants by name, one call each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

CONTRIB = "com.microsoft"


class Builder:
    """Collects nodes and initializers of one graph; every value is named after its role."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: dict[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Append one node with one output; node and output carry `name`."""
        output = ir.Value(name=name)
        self.nodes.append(ir.node(op_type, inputs, attributes or {}, domain=domain, outputs=[output], name=name))
        return output

    def split(self, x: ir.Value, names: Sequence[str], axis: int) -> list[ir.Value]:
        """Equal parts of x along an axis."""
        outputs = [ir.Value(name=name) for name in names]
        attributes = {"axis": axis, "num_outputs": len(names)}
        self.nodes.append(ir.node("Split", [x], attributes, outputs=outputs, name=f"{names[0]}.split"))
        return outputs

    def constant(self, name: str, value: ArrayLike, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer; asking twice for a name gives the same one."""
        if name not in self.initializers:
            tensor = ir.tensor(np.asarray(value), dtype=dtype, name=name)
            self.initializers[name] = ir.Value(
                name=name, const_value=tensor, shape=ir.Shape(np.shape(value)), type=ir.TensorType(tensor.dtype)
            )
        return self.initializers[name]

    def float(self, name: str, value: ArrayLike) -> ir.Value:
        return self.constant(name, np.asarray(value, dtype=np.float32))

    def reshape(self, x: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        """0 copies an axis: every shape here starts with one, so that the batch stays free."""
        label = "x".join(str(size) if size >= 0 else "rest" for size in shape)
        return self.op("Reshape", [x, self.constant(f"shape.{label}", np.asarray(shape, dtype=np.int64))], name)

    def transpose(self, x: ir.Value, order: Sequence[int], name: str) -> ir.Value:
        return self.op("Transpose", [x], name, {"perm": list(order)})

    def cast(self, x: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        return self.op("Cast", [x], name, {"to": int(dtype)})

    def model(
        self,
        image: ir.Value,
        logits: ir.Value,
        opset: int,
        overridable: Sequence[ir.Value],
        metadata: dict[str, str],
    ) -> ir.Model:
        """The whole model. `overridable` initializers are listed as graph inputs too, which stops folding."""
        import onnx

        from ofq_deploy import __version__

        imports = dict.fromkeys(sorted({node.domain for node in self.nodes}), 1) | {"": opset}
        graph = ir.Graph(
            [image, *overridable],
            [logits],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports=imports,
            name="ofq_deploy",
        )
        versions = [onnx.helper.make_opsetid("", opset)]
        return ir.Model(
            graph,
            ir_version=onnx.helper.find_min_ir_version_for(versions),
            producer_name="ofq-deploy",
            producer_version=__version__,
            metadata_props=metadata,
        )
