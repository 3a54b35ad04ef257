"""Where the time of a model goes in ONNX Runtime, by its own profiler."""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ofq_deploy.model.file import OnnxFile
from ofq_deploy.runtime_tests.runners.ort import open_session, run_logits

WARM_UP = 3
KERNEL = "_kernel_time"


@dataclass(frozen=True, slots=True)
class Share:
    """Milliseconds per call of some nodes, and their share of all nodes' time."""

    name: str
    nodes: int
    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """The time by operator, and by role: nodes of the same name in all blocks. Largest first."""

    operators: tuple[Share, ...]
    roles: tuple[Share, ...]


def profile(file: OnnxFile, threads: int, shape: tuple[int, ...], calls: int = 30) -> Profile:
    """Median time of every node over some calls, summed by operator and by role.

    shape: of the images, [batch, channels, height, width]
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(file.proto, threads, profile_prefix=Path(folder) / "profile")
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        for _ in range(WARM_UP + calls):
            run_logits(session, images)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            times[event["name"].removesuffix(KERNEL), event["args"]["op_name"]].append(event["dur"] / 1000)
    spent = {key: median(values[WARM_UP:] or values) for key, values in times.items()}
    by_operator = _sum((operator, ms) for (_, operator), ms in spent.items())
    by_role = _sum((f"{_role(name)} ({operator})", ms) for (name, operator), ms in spent.items())
    return Profile(by_operator, by_role)


def _role(name: str) -> str:
    """A node's name without its block, and without what the optimizer appends to the names of nodes that it merges."""
    return re.sub(
        r"blocks\.\d+\.", "blocks.*.", re.split(r"[/ ]|_(?=FusedMatMul|MatMulInteger|Add|nchwc|token)", name)[0]
    )


def _sum(pairs: Iterable[tuple[str, float]]) -> tuple[Share, ...]:
    groups: dict[str, list[float]] = defaultdict(list)
    for name, ms in pairs:
        groups[name].append(ms)
    whole = sum(map(sum, groups.values())) or 1.0
    shares = [Share(name, len(values), sum(values), sum(values) / whole) for name, values in groups.items()]
    return tuple(sorted(shares, key=lambda share: -share.ms))
