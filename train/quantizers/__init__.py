"""The quantizers: StatsQ and LSQ for weights, LSQ with learned shifts for activations.

Every quantizer has one function that makes codes; training, freezing and tests all call it. The value is
built as code * step, never by straight-through arithmetic, so `dequantize(codes)` and the value that the
network sees are the same bits. Gradients are custom functions: LSQ keeps its raw input (its step gradient
needs the residual `code - input / step`, which codes or masks do not hold), StatsQ keeps nothing.

Sources: StatsQ is OFQ (ICML 2023) section 4.1; LSQ is Esser et al. (ICLR 2020), with OFQ's start values.
"""

from ofq_deploy.train.quantizers.coded import Coded
from ofq_deploy.train.quantizers.factory import WEIGHT_QUANTIZERS, Quantizers
from ofq_deploy.train.quantizers.lsq import STEP_FLOOR, LsqFunction, LsqQuantizer, LsqWeight, lsq_codes
from ofq_deploy.train.quantizers.statsq import StatsQ, statsq_codes, statsq_units
from ofq_deploy.train.quantizers.weight import WeightQuantizer, near_threshold

__all__ = [
    "STEP_FLOOR",
    "WEIGHT_QUANTIZERS",
    "Coded",
    "LsqFunction",
    "LsqQuantizer",
    "LsqWeight",
    "Quantizers",
    "StatsQ",
    "WeightQuantizer",
    "lsq_codes",
    "near_threshold",
    "statsq_codes",
    "statsq_units",
]
