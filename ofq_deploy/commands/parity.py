"""What `parity` does: open two runners of one model, compare them code by code, and pass a verdict."""

from typing import TYPE_CHECKING

from ofq_deploy.commands.requests import ParityRequest
from ofq_deploy.commands.validate import frozen_of, test_split
from ofq_deploy.errors import BackendMissing, RunError, UnsupportedByTarget
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.results.proof import ParityResult
from ofq_deploy.results.record import stamped
from ofq_deploy.results.verdicts import parity_verdict
from ofq_deploy.runs.subject import Subject, find
from ofq_deploy.runtime_tests.runners.registry import find_opening

if TYPE_CHECKING:
    from ofq_deploy.runner import Runner

WITNESSES = ("torch", "oracle")  # which compute the taps from the run and the frozen file, not from the model's


def parity(request: ParityRequest, report: Reporter) -> ParityResult:
    """See ofq_deploy.api.parity."""
    from ofq_deploy.runtime_tests.proof.compare import compare_operators, first_divergences

    leader, follower = request.leader, request.follower
    if leader == follower:
        raise UnsupportedByTarget(f"{leader} cannot be compared with itself; pass another --leader or --follower")
    for name in (leader, follower):
        if not _is_witness(name):
            find_opening(name, WITNESSES)
    found = find(request.subject, request.run)
    frozen = frozen_of(found, *(name for name in (leader, follower) if not _is_witness(name)))
    _, test = test_split(found, frozen, request.data, None)
    batch = test.spread(request.images)
    with _open_witness(leader, found, frozen) as first, _open_witness(follower, found, frozen) as second:
        rows = compare_operators(frozen, first, [second], batch, report, directly=True)
        own, other = (runner.infer({"image": batch}) for runner in (first, second))
        divergences = first_divergences(frozen, first.metadata, own, second.metadata, other, batch)
        runners = {"leader": first.metadata, "follower": second.metadata}
    faults = [f"{row.follower} against {row.reference}: {fault}" for row in rows for fault in row.faults()]
    faults += [
        f"free run: image {entry.image} parts at {entry.operator}, and not by a tie"
        for entry in divergences
        if not entry.is_tie
    ][:5]
    parts = {
        "model": str(found.path),
        "model_sha256": found.file.sha256,
        "leader": leader,
        "follower": follower,
        "runners": runners,
        "images": len(batch),
        "parity": [row.table() for row in rows],
        "free_run": {"images": len(batch), "divergences": divergences},
        "passed": not faults,
        "faults": faults,
    }
    return stamped(ParityResult, request.line(), parts | {"verdict": parity_verdict(parts)})


def _is_witness(name: str) -> bool:
    return name.partition(":")[0] in WITNESSES


def _open_witness(name: str, found: Subject, frozen: Frozen) -> "Runner":
    """One of those that compute a model's taps, by its name; see ofq_deploy.api.parity."""
    if name == "oracle":
        from ofq_deploy.runtime_tests.proof.oracle import Oracle

        return Oracle(frozen)
    kind, _, variant = name.partition(":")
    if kind != "torch":
        from ofq_deploy.runtime_tests.proof.tapped import open_tapped

        return open_tapped(name, found.file, frozen)
    import torch

    from ofq_deploy.train.reference import load_student
    from ofq_deploy.train.witness import TorchRunner

    if found.run is None:
        raise RunError("torch needs the run folder that the model came from; pass it with --run, or --leader oracle")
    if variant not in ("", "float64", "cuda"):
        raise UnsupportedByTarget(f"no runner {name!r}; of torch there are torch, torch:float64 and torch:cuda")
    if variant == "cuda" and not torch.cuda.is_available():
        raise BackendMissing("torch:cuda needs a CUDA device, and torch sees none; use torch")
    dtype = torch.float64 if variant == "float64" else torch.float32
    return TorchRunner(load_student(found.run, frozen), dtype, "cuda" if variant == "cuda" else "cpu")
