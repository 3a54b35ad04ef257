"""Run mypy over the packages as they are imported, that of the kernels, the tests and the benchmarks.

mypy cannot follow the mapping of train/, export/ and runtime_tests/ into the package (nor an import hook), so it
sees a folder of links laid out as a wheel would be. Editors can use build/typecheck as a search path.
Benchmarks are scripts that import one another: each is a module of its own at the top.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FARM = ROOT / "build" / "typecheck"


def main() -> int:
    shutil.rmtree(FARM, ignore_errors=True)
    package = FARM / "ofq_deploy"
    package.mkdir(parents=True)
    for item in (ROOT / "ofq_deploy").iterdir():
        if item.name != "__pycache__":
            (package / item.name).symlink_to(item)
    for name in ("train", "export", "runtime_tests"):
        (package / name).symlink_to(ROOT / name)
    (FARM / "ofq_kernels").symlink_to(ROOT / "kernels" / "ofq_kernels")
    (FARM / "tests").symlink_to(ROOT / "tests")
    scripts = sorted((ROOT / "benchmarks").glob("*.py"))
    for script in scripts:
        (FARM / script.name).symlink_to(script)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "ofq_deploy"]
    command += ["-p", "ofq_kernels", "-p", "tests", *(word for script in scripts for word in ("-m", script.stem))]
    return subprocess.call(command, cwd=FARM, env={**os.environ, "MYPYPATH": str(FARM)})


if __name__ == "__main__":
    raise SystemExit(main())
