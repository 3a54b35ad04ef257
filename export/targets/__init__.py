"""Kinds of graphs, one file each."""

from ofq_deploy.export.targets.openvino import OpenVino
from ofq_deploy.export.targets.ort_cpu import OrtCpu
from ofq_deploy.export.targets.portable import Portable
from ofq_deploy.export.targets.protocol import HIGHEST_OPSET, Rescale, Steps, Target
from ofq_deploy.export.targets.tensorrt import TensorRt

__all__ = ["HIGHEST_OPSET", "TARGETS", "Rescale", "Steps", "Target"]

TARGETS: dict[str, Target] = {
    "portable": Portable(),
    "ort-cpu": OrtCpu(),
    "openvino": OpenVino(),
    "tensorrt": TensorRt(),
}
