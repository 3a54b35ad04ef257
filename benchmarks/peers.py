"""How the models are made that ours are compared with."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def export_float(network: Any, image: tuple[int, int, int], path: Path) -> None:
    """A torch network of images [batch, *image] as ONNX, by torch's older exporter, which needs no further package."""
    import torch

    options: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"], "opset_version": 20}
    options["dynamic_axes"] = {"image": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(network, (torch.zeros(2, *image),), path, dynamo=False, **options)


def quantized_by_onnxruntime(source: Path, name: str, images: list[NDArray[np.float32]], is_static: bool) -> Path:
    """The path of an int8 model, as ONNX Runtime's documentation advises: preprocessed first, weights int8 per channel.

    name:   of the input
    images: float32 [1, channels, height, width] each, to calibrate a static model on
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{name: image} for image in images])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.feeds, None)

    prepared, path = source.with_suffix(".prepared.onnx"), source.with_suffix(f".static{is_static:d}.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)  # which stumbles over pruned blocks
    weights: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
    if is_static:
        activations = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8}
        quantize_static(prepared, path, Reader(), **activations, **weights)
    else:
        quantize_dynamic(prepared, path, **weights)
    return path
