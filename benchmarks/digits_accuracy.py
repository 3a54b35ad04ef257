"""Accuracy, exactness, size and speed of the embedded recipes over several seeds.

    python benchmarks/digits_accuracy.py --seeds 3 -o benchmarks/results/digits.json

For each seed: float teacher, W4A4 and W2A2 students, portable export, the whole proof on the test split. About
three minutes a seed on one core.
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

from ofq_deploy import api
from ofq_deploy.demo import RECIPES
from ofq_deploy.environment import environment
from ofq_deploy.progress import Reporter

BENCH_SECONDS = 5.0
AVERAGED = ("top1_float", "top1_torch", "top1_runtime", "file_bytes", "float_file_bytes", "speed_beside_float")
KEPT = (
    "top1_float",
    "top1_torch",
    "top1_runtime",
    "agreement",
    "runtime_agrees_with_float64",
    "float32_agrees_with_float64",
    "codes_compared",
    "codes_differing",
    "ties",
    "passed",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    report, rows = Reporter(quiet=False), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for name in RECIPES:
                run = Path(folder) / f"{name}-{seed}"
                api.train(name, output=run, overrides={"seed": seed}, device="cpu", report=report)
                model = api.export(run)
                proof = api.validate(model, report=report)
                speed = api.bench(model, seconds=BENCH_SECONDS, report=report)
                free = proof["free_run"]
                row = {"recipe": name, "seed": seed, **{key: proof[key] for key in KEPT}}
                row["free_run_divergences"] = len(free["divergences"])
                row["free_run_divergences_at_ties"] = sum(entry["is_tie"] for entry in free["divergences"])
                row["file_bytes"], row["float_file_bytes"] = (
                    speed[role]["file_bytes"] for role in ("model", "baseline")
                )
                row["speed_beside_float"] = speed["speedup"][0]["ratio_of_medians"]
                rows.append(row)
                print(json.dumps(row), flush=True)
    means = {
        name: {key: mean(row[key] for row in rows if row["recipe"] == name) for key in AVERAGED} for name in RECIPES
    }
    result = {"date": datetime.now(UTC).date().isoformat(), "environment": environment(), "means": means, "rows": rows}
    print(json.dumps(means, indent=2))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
