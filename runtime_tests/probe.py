"""What a fresh process needs to load a model and run it once.

Run as `python -m ofq_deploy.runtime_tests.probe MODEL THREADS BATCH`.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ofq_deploy.errors import OnnxFileError


@dataclass(frozen=True, slots=True)
class Cost:
    """load_ms: wall time to make the session; peak_mb: growth of the largest resident size over the imports alone"""

    load_ms: float
    peak_mb: float


def probe(model: Path, threads: int, batch: int) -> Cost:
    """Measure in a process of its own, so that neither models nor caches share memory."""
    command = [
        sys.executable,
        "-m",
        "ofq_deploy.runtime_tests.probe",
        str(model.resolve()),
        str(threads),
        str(batch),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OnnxFileError(f"{model} cannot be run: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return Cost(**json.loads(done.stdout))


def _main(model: Path, threads: int, batch: int) -> None:
    import numpy as np
    import onnxruntime  # noqa: F401  # its import is not the model's cost

    from ofq_deploy.runtime_tests.ort import open_session, run_logits

    before = _peak_mb()
    start = time.perf_counter()
    session = open_session(model, threads)
    load_ms = 1000 * (time.perf_counter() - start)
    shape = [size if isinstance(size, int) else batch for size in session.get_inputs()[0].shape]
    run_logits(session, np.zeros(shape, dtype=np.float32))
    print(json.dumps({"load_ms": load_ms, "peak_mb": _peak_mb() - before}))


def _peak_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: rusage would start at the parent's peak
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource  # absent on Windows, where there is nothing like it

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
