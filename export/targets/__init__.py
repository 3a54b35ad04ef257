"""How each target lowers integer products, one file each; their records are in ofq_deploy/targets.py."""

from ofq_deploy.export.targets.protocol import HIGHEST_OPSET, Rescale, Steps, TargetOperators

__all__ = ["HIGHEST_OPSET", "Rescale", "Steps", "TargetOperators"]
