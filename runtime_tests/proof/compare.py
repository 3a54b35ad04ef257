"""Any two runners, operator by operator on the same codes, and in free runs. The oracle tells ties from errors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.model.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.runner import FORCED, Arrays, Metadata, Runner
from ofq_deploy.runtime_tests.proof.oracle import Oracle, Trace
from ofq_deploy.runtime_tests.proof.parity import Parity, compare_codes, compare_floats, merge


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first operator at which a free run of one image leaves another runner's."""

    image: int
    operator: str
    differing: int
    is_tie: bool


def compare_operators(
    frozen: Frozen,
    leader: Runner,
    followers: Sequence[Runner],
    images: NDArray[np.float32],
    report: Reporter,
    batches: tuple[int, ...] = (1, 3),
    directly: bool = False,
) -> list[Parity]:
    """Run the leader freely, feed its codes to every operator of the followers and of the oracle, and compare.

    images:   float32 [images, channels, size, size]
    batches:  sizes to cut the images into, over and over
    directly: compare the followers with the leader too

    Returns each follower against the oracle; then, unless the leader is an oracle itself, the leader against the oracle
    and each follower against the leader.
    """
    oracle = Oracle(frozen)
    leads = leader.metadata.backend == oracle.metadata.backend
    found: list[list[Parity]] = []
    pairs: list[tuple[Runner, Arrays, Runner, Arrays]]
    pieces = list(cut(len(images), batches))
    names = " and ".join(runner.metadata.backend for runner in followers)
    with report.task(f"operators of {names} on codes of {leader.metadata.backend}", len(pieces)) as advance:
        for chosen in pieces:
            batch = images[chosen]
            given = leader.infer({"image": batch})
            inputs = forced_inputs(batch, given)
            judge = oracle.trace(inputs)
            expected: Arrays = {**judge.codes, **judge.floats}
            made = [follower.infer(inputs) for follower in followers]
            pairs = [(oracle, expected, follower, own) for follower, own in zip(followers, made, strict=True)]
            pairs += [] if leads else [(oracle, expected, leader, given)]
            if directly and not leads:
                pairs += [(leader, given, follower, own) for follower, own in zip(followers, made, strict=True)]
            found.append([_compare(leader, *pair, judge) for pair in pairs])
            advance()
    return [merge(parts) for parts in zip(*found, strict=True)]


def _compare(
    leader: Runner, reference: Runner, expected: Arrays, follower: Runner, made: Arrays, judge: Trace
) -> Parity:
    tie = max(reference.metadata.tie, follower.metadata.tie)
    codes = tuple(
        compare_codes(name, made[name], expected[name], units, tie)
        for name, units in judge.units.items()  # in the order of the network
    )
    floats = tuple(compare_floats(name, made[name], expected[name]) for name in judge.floats)
    names = leader.metadata.backend, reference.metadata.backend, follower.metadata.backend
    return Parity(*names, len(made["logits"]), codes, floats)


def first_divergences(
    frozen: Frozen, leader: Metadata, own: Arrays, follower: Metadata, other: Arrays | None, images: NDArray[np.float32]
) -> list[Divergence]:
    """Where free runs of the same images part, image by image.

    own, other: what the leader's and the follower's free runs of `images` gave; without `other` the follower is the
                oracle, which at the first difference computes the same from the leader's codes as from its own
    """
    judge = Oracle(frozen).trace(forced_inputs(images, own))
    compared: Arrays = {**judge.codes} if other is None else other
    tie = max(leader.tie, follower.tie)
    found = []
    for image in range(len(images)):
        for name, units in judge.units.items():
            result = compare_codes(name, own[name][image], compared[name][image], units[image], tie)
            if result.differing:
                found.append(Divergence(image, name, result.differing, result.mismatches == 0))
                break
    return found


def forced_inputs(images: NDArray[np.float32], given: Arrays) -> Arrays:
    """What makes a runner compute every operator on the codes and the residual stream in `given`."""
    return {"image": images, **{name + FORCED: value for name, value in given.items() if name != "logits"}}


def count_differing(own: Arrays, other: Arrays) -> tuple[int, int]:
    """Codes that differ between two runs, and codes compared."""
    names = [name for name, value in own.items() if np.issubdtype(value.dtype, np.integer)]
    return sum(int((own[n] != other[n]).sum()) for n in names), sum(own[n].size for n in names)


def cut(count: int, sizes: tuple[int, ...]) -> Iterator[slice]:
    """Consecutive slices of `count` images, of the sizes in turn."""
    start, turn = 0, 0
    while start < count:
        stop = min(start + sizes[turn % len(sizes)], count)
        yield slice(start, stop)
        start, turn = stop, turn + 1
