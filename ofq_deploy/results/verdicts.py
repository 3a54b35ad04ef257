"""The one sentence that sums a comparison up; runtime_tests/speed/bench.py and commands/foreign.py have their own."""

from typing import Any


def validation_verdict(result: dict[str, Any]) -> str:
    """What `validate` concludes."""
    faults = result["faults"]
    if faults:
        others = {1: "", 2: ", and one more fault"}.get(len(faults), f", and {len(faults) - 1} more faults")
        return f"Not proven: {faults[0]}{others}."
    if "golden" in result:
        flips = sum(len(row["flips"]) for row in result["blocks"])
        ties = f", after following {flips} rounding ties" if flips else ""
        return f"Proven: the run computes what the official code computed on {result['images']} images{ties}."
    compared, differing, ties = (result[key] for key in ("codes_compared", "codes_differing", "ties"))
    reference = "training computed"
    if "torch" not in result["witnesses"]:
        reference = "the frozen file defines (torch was not asked)"
    codes = (
        f"{differing} of {compared:,} codes differ, by rounding ties" if ties else f"all {compared:,} codes are equal"
    )
    accuracy = ""
    if result.get("top1_runtime") is not None:
        accuracy = f"; top-1 {result['top1_runtime']:.2f} %"
        accuracy += f", float {result['top1_float']:.2f} %" if "top1_float" in result else ""
    return f"Proven: the model computes what {reference}; {codes}{accuracy}."


def parity_verdict(result: dict[str, Any]) -> str:
    """What `parity` concludes."""
    names = f"{result['follower']} against {result['leader']}"
    if result["faults"]:
        return f"They differ: {names}; {result['faults'][0]}."
    ties = result["parity"][-1]["ties"]  # the two themselves; the rows before compare them with the oracle
    return f"Equal: {names}, all codes{f' but for {ties} rounding ties' if ties else ''}."
