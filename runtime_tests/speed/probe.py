"""What a fresh process needs to load a model and run it once.

Run as `python -m ofq_deploy.runtime_tests.speed.probe OPENS PACKAGE MODEL THREADS BATCH CHANNELS HEIGHT WIDTH`, OPENS and PACKAGE
being those of a backend's record: the process need not know the backend by its name.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.runtime_tests.runners.registry import find_opening


@dataclass(frozen=True, slots=True)
class Cost:
    """load_ms: wall time to open the model; peak_mb: growth of the largest resident size over the imports alone"""

    load_ms: float
    peak_mb: float


def probe(backend: str, model: Path, threads: int, shape: tuple[int, ...]) -> Cost:
    """Measure in a process of its own, so that neither models nor caches share memory.

    shape: of the images, [batch, channels, height, width]
    """
    module = "ofq_deploy.runtime_tests.speed.probe"
    record = find_opening(backend)[0]
    numbers = map(str, (threads, *shape))
    command = [sys.executable, "-m", module, record.opens, record.package, str(model.resolve()), *numbers]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OnnxFileError(f"{model} cannot be run: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return Cost(**json.loads(done.stdout))


def _main(opens: str, package: str, model: Path, threads: int, shape: tuple[int, ...]) -> None:
    import numpy as np

    from ofq_deploy.model.file import OnnxFile
    from ofq_deploy.runner import Opening, logits

    open_model = resolve_name(opens)
    import_module(package)  # its import is not the model's cost
    before = _peak_mb()
    start = time.perf_counter()
    runner = open_model(OnnxFile(model), Opening("probe", threads, shape[0]))
    load_ms = 1000 * (time.perf_counter() - start)
    logits(runner, np.zeros(shape, dtype=np.float32))
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
    _main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), tuple(map(int, sys.argv[5:])))
