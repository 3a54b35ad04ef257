"""Where torch ends: a trained model as codes and constants.

Codes, steps and QKR's merged product come from torch's own forward. What can be folded is folded here, once, in
float64, and cast once to float32: every later consumer uses these constants and never folds again. The folds
are exact in real arithmetic; flips of codes against torch are counted by the proof.
"""

import hashlib

import torch
from safetensors.torch import save
from torch import nn

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import ModelError
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.recipe import Quantization
from ofq_deploy.train.architectures.registry import adapter_of
from ofq_deploy.train.convert import activation_quantizers
from ofq_deploy.train.folding import Writer


def freeze(model: nn.Module, config: Quantization, preprocessing: Preprocessing, labels: tuple[str, ...]) -> Frozen:
    """The frozen form of a converted, calibrated model (ofq_deploy.model.nodes tells every array).

    Raises ModelError when an activation quantizer has no steps yet, or a number is not finite.
    """
    waiting = [path for path, quantizer in activation_quantizers(model).items() if not quantizer.initialized]
    if waiting:
        raise ModelError(f"{waiting[0]} and {len(waiting) - 1} more quantizers have no steps; run calibrate first")
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(f"{broken[0]} holds values that are not finite ({len(broken)} tensors); train again")
    writer = Writer()
    architecture = adapter_of(model).freeze(model, writer)
    hashes = {"weights.safetensors": hashlib.sha256(save(model.state_dict())).hexdigest()}
    network = architecture.graph(config, writer.quantizers, writer.linears)
    return Frozen(architecture, network, config, preprocessing, labels, hashes, writer.arrays)
