"""Everything from a bare Python to the demo or the tests.

    python3 tools/bootstrap.py demo
    python3 tools/bootstrap.py test

Makes a virtual environment in .venv (or uses the active one), installs the checkout into it, and runs. Further
arguments go to `ofq-deploy demo` or to pytest. Needs Python 3.11 or newer and a package index; torch alone is
several gigabytes on Linux.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOALS = {
    "demo": (".", ["ofq_deploy", "demo"]),
    "test": (".[test]", ["pytest", "-q", "-n", "auto"]),
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in GOALS:
        print(f"usage: python3 tools/bootstrap.py {'|'.join(GOALS)} [ARGUMENTS]", file=sys.stderr)
        return 2
    if sys.version_info < (3, 11):
        print(f"bootstrap: Python 3.11 or newer is needed, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    requirement, module = GOALS[sys.argv[1]]
    python = environment_python()
    os.chdir(ROOT)
    installed = subprocess.call([python, "-m", "pip", "install", "--quiet", "--editable", requirement])
    return installed or subprocess.call([python, "-m", *module, *sys.argv[2:]])


def environment_python() -> str:
    """The active virtual environment's interpreter, or the one of .venv, made when missing."""
    if sys.prefix != sys.base_prefix:
        return sys.executable
    folder = ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making a virtual environment in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
    return str(python)


if __name__ == "__main__":
    raise SystemExit(main())
