"""Accuracy of a model file in the runtime that will serve it, and what can be concluded from it."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.data.datasets import Split
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.progress import Reporter
from ofq_deploy.runner import logits
from ofq_deploy.runtime_tests.runners.registry import open_runner

TOP = 5


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What a model said of some images.

    ranked:       int64 [images, at most 5], the likeliest classes, best first
    classes:      int64 [images], None where there are no labels
    images_per_s: of the runtime alone
    """

    ranked: NDArray[np.int64]
    classes: NDArray[np.int64] | None
    images_per_s: float

    @property
    def predictions(self) -> NDArray[np.int64]:
        return self.ranked[:, 0]

    @property
    def top1(self) -> float | None:
        """Percent of the images whose likeliest class is theirs; None without labels."""
        return None if self.classes is None else 100 * float((self.predictions == self.classes).mean())

    def table(self) -> dict[str, Any]:
        """Throughput, and with labels top-1 and top-5 in percent with their 95 % intervals."""
        count = len(self.ranked)
        if self.classes is None:
            return {"images": count, "images_per_s": self.images_per_s}
        hits = {
            "top1": int((self.predictions == self.classes).sum()),
            "top5": int((self.ranked == self.classes[:, None]).any(1).sum()),
        }
        table: dict[str, Any] = {"images": count, "images_per_s": self.images_per_s}
        for name, own in hits.items():
            table |= {name: 100 * own / count, f"{name}_interval": interval(own, count)}
        return table


def measure_accuracy(
    file: OnnxFile, split: Split, report: Reporter, backend: str = "ort-cpu", batch: int = 32, name: str = ""
) -> Accuracy:
    """Run every image of the split through one runtime, in batches of one size: some are opened for one only.

    name: of the model, for the progress; by default the file's
    """
    ranked, seconds, size = [], 0.0, min(batch, len(split))
    task = report.task(f"accuracy of {name or file.path.name}", -(-len(split) // size))
    with open_runner(backend, file, batch=size) as runner, task as advance:
        for images, classes in split.batches(size):
            padded = np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])
            start = time.perf_counter()
            made = logits(runner, padded)[: len(classes)]
            seconds += time.perf_counter() - start
            ranked.append(np.argsort(-made, axis=-1, kind="stable")[:, :TOP])
            advance()
    return Accuracy(np.concatenate(ranked), split.classes if split.labelled else None, len(split) / seconds)


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent (Wilson 1927); it stays sensible near 0 and 100."""
    from scipy.stats import binomtest

    low, high = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * float(low), 100 * float(high)


def paired(own: Accuracy, reference: Accuracy) -> dict[str, Any]:
    """Two models on the same images: agreement in percent, and with labels who alone is right, and McNemar's exact
    two-sided p.

    p is the probability of a split at least as uneven if both were equally good (McNemar 1947).
    """
    from scipy.stats import binomtest

    agreement = {"agreement": 100 * float((own.predictions == reference.predictions).mean())}
    if own.classes is None:
        return agreement
    ours, theirs = (entry.predictions == own.classes for entry in (own, reference))
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    decided = only_ours + only_theirs
    return agreement | {
        "only_model_right": only_ours,
        "only_reference_right": only_theirs,
        "mcnemar_p": float(binomtest(only_ours, decided).pvalue) if decided else 1.0,
    }


def by_class(own: Accuracy, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Images and top-1 of every class that occurs, in percent; nothing without labels."""
    if own.classes is None:
        return []
    right = own.predictions == own.classes
    return [
        {"label": labels[index], "images": int(chosen.sum()), "top1": 100 * float(right[chosen].mean())}
        for index in np.unique(own.classes)
        for chosen in [own.classes == index]
    ]
