"""What graphs of fused operators (export/fused.py) say in ordinary ones."""

from ofq_deploy.export.targets.ort_cpu import OrtCpu
from ofq_deploy.targets import ORT_OFQ


class OrtOfq(OrtCpu):
    """ONNX Runtime's operators, for what no fused one computes."""

    name, packs_weights = ORT_OFQ.name, ORT_OFQ.packs_weights
