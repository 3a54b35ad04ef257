"""The float model of the same architecture: the baseline that a quantized model is measured against."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ofq_deploy.errors import ModelError
from ofq_deploy.export.lowering import LOWEST_OPSET, Floats, Lowering, check_opset
from ofq_deploy.export.network import metadata
from ofq_deploy.model import nodes
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.layout import layout_steps


def build_fp32(frozen: Frozen, weights: Path, opset: int | None = None) -> ir.Model:
    """A float32 ONNX model from timm-named weights (safetensors), with the sizes of `frozen`.

    q, k and v are one product and the attention scale is in its weights, as a careful hand would write it. All
    tokens of the last block are computed, as float exports do.
    Raises ModelError when the file is cut or does not have the architecture's tensors.
    """
    architecture, opset = frozen.architecture, check_opset(opset or LOWEST_OPSET)
    try:
        arrays = architecture.float_arrays(load_file(weights))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{weights} is not a whole safetensors file ({error})") from error
    except KeyError as error:
        raise ModelError(
            f"{weights} lacks the tensor {error}; expected timm's names of a vision transformer"
        ) from error
    lowering = _Floats(architecture.float_graph(), arrays)
    logits = lowering.lower()
    about = {"ofq_deploy.method": "float", "ofq_deploy.quantization": json.dumps({})}
    properties = {**metadata(frozen, "fp32", ""), **about}
    properties.pop("ofq_deploy.bits", None)
    return lowering.b.model(lowering.image, logits, opset, [], properties)


class _Floats(Lowering):
    def is_deferred(self, layout: nodes.Layout) -> bool:
        """Patches are read by a convolution; q, k and v are laid out together."""
        return _is_patches(layout) or layout.output in self.values

    def emit(self, node: nodes.AnyNode) -> None:
        if node.output not in self.values:
            super().emit(node)

    def quantize(self, node: nodes.Quantize) -> ir.Value:
        raise TypeError(f"a float network has no quantizer {node.name}")

    def linear(self, node: nodes.Linear) -> ir.Value:
        maker = self.network.makers[node.x]
        if isinstance(maker, nodes.Layout) and _is_patches(maker):
            return self._convolution(node, maker)
        siblings = [reader for reader in self.network.readers[node.x] if isinstance(reader, nodes.Linear)]
        layouts = [layout for sibling in siblings if (layout := self._only_layout(sibling)) is not None]
        shapes = {(sibling.width, layout.sizes["h"]) for sibling, layout in zip(siblings, layouts, strict=False)}
        if len(siblings) == len(layouts) > 1 and len(shapes) == 1:
            return self._merged(siblings, layouts)
        b, name, x = self.b, node.name, self.values[node.x]
        weight = b.float(f"{name}.weight", self.arrays[f"{name}.weight"].T)
        bias = self.arrays.get(f"{name}.bias")
        if len(self.network.shapes[node.x]) == 1:
            return b.op("Gemm", [x, weight, *([] if bias is None else [b.float(f"{name}.bias", bias)])], node.output)
        return self._affine(name, x, weight, bias)

    def product(self, node: nodes.Product) -> ir.Value:
        return self.b.op("MatMul", [self.values[node.left], self.values[node.right]], node.name)

    def _affine(self, name: str, x: ir.Value, weight: ir.Value, bias: Floats | None) -> ir.Value:
        product = self.b.op("MatMul", [x, weight], f"{name}.product")
        if bias is None:
            return product
        return self.b.op("Add", [product, self.b.float(f"{name}.bias", bias.reshape(1, 1, -1))], f"{name}.out")

    def _convolution(self, node: nodes.Linear, patches: nodes.Layout) -> ir.Value:
        """Patches times weights as one convolution with stride = kernel, [batch, patches, width]."""
        b, name, (p, q) = self.b, node.name, (patches.sizes["p"], patches.sizes["q"])
        kernel = self.arrays[f"{name}.weight"].reshape(node.width, -1, p, q)
        operands = [self.image, b.float(f"{name}.weight", kernel), b.float(f"{name}.bias", self.arrays[f"{name}.bias"])]
        x = b.op("Conv", operands, f"{name}.grid", {"strides": [p, q]})
        x = b.reshape(x, [0, node.width, self.network.shapes[patches.output][0]], f"{name}.flat")
        return b.transpose(x, (0, 2, 1), f"{name}.rows")

    def _only_layout(self, linear: nodes.Linear) -> nodes.Layout | None:
        """The layout by heads that alone reads a linear."""
        readers = self.network.readers[linear.output]
        layout = readers[0] if len(readers) == 1 else None
        return layout if isinstance(layout, nodes.Layout) and set(layout.sizes) == {"h"} else None

    def _merged(self, linears: list[nodes.Linear], layouts: list[nodes.Layout]) -> ir.Value:
        """Linears that read the same value as one product, its columns given to each and laid out; returns the first."""
        b, names = self.b, [linear.name.rpartition(".") for linear in linears]
        parent = names[0][0]
        name = f"{parent}.{''.join(part for _, _, part in names)}"
        weights = [self.arrays[f"{linear.name}.weight"] for linear in linears]
        biases = [self.arrays[f"{linear.name}.bias"] for linear in linears if f"{linear.name}.bias" in self.arrays]
        weight = b.float(f"{name}.weight", np.concatenate(weights).T)
        x = self._affine(name, self.values[linears[0].x], weight, np.concatenate(biases) if biases else None)
        heads = layouts[0].sizes["h"]
        rows, width = self.network.shapes[linears[0].output]
        x = b.reshape(x, [0, rows, len(linears) * heads, width // heads], f"{parent}.split")
        parts = b.split(x, [linear.name for linear in linears], 2)
        self.values |= {linear.output: part for linear, part in zip(linears, parts, strict=True)}
        for layout in sorted(layouts, key=lambda layout: self._order(layout)):
            order = (0, *(axis + 1 for axis in self._order(layout)))
            self.values[layout.output] = b.transpose(self.values[layout.x], order, layout.name)
        return parts[0]

    def _order(self, layout: nodes.Layout) -> tuple[int, ...]:
        return layout_steps(layout, self.network.shapes[layout.x]).order


def _is_patches(layout: nodes.Layout) -> bool:
    """Whether it cuts the image into patches, which a convolution does with its weights at once."""
    return layout.x == "image" and set(layout.sizes) == {"p", "q"}
