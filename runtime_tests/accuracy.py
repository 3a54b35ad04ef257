"""Top-1 of a model file on a data set, in the runtime that will serve it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.datasets import Split
from ofq_deploy.progress import Reporter
from ofq_deploy.runtime_tests.ort import open_session, run_logits


@dataclass(frozen=True, slots=True)
class Accuracy:
    """top1: percent; predictions: int64 [images]"""

    top1: float
    predictions: NDArray[np.int64]


def measure_accuracy(path: Path, split: Split, report: Reporter, batch: int = 32) -> Accuracy:
    """Run every image of the split through ONNX Runtime."""
    session = open_session(path)
    predictions = []
    with report.task(f"accuracy of {path.name}", -(-len(split) // batch)) as advance:
        for images, _ in split.batches(batch):
            predictions.append(run_logits(session, images).argmax(-1))
            advance()
    found = np.concatenate(predictions)
    return Accuracy(100 * float((found == split.classes).mean()), found)
