"""Everything from a bare Python to the demo or the tests.

    python3 tools/bootstrap.py demo
    python3 tools/bootstrap.py test

Makes a virtual environment in .venv (or uses the active one), installs the checkout into it, and runs. Further
arguments go to `ofq-deploy demo` or to pytest. Needs Python 3.11 or newer and a package index; torch alone is
several gigabytes on Linux. With a C++ compiler the library of fused operators (kernels/) is built and installed too.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOALS = {
    "demo": (".", ["ofq_deploy", "demo"]),
    "test": (".[test]", ["pytest", "-q", "-n", "auto"]),
}
COMPILERS = ("c++", "g++", "clang++", "cl")
LOST = "models of the target ort-ofq will not run here, their operators could not be built"


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
    if installed:
        return installed
    install_kernels(python)
    return subprocess.call([python, "-m", *module, *sys.argv[2:]])


def install_kernels(python: str) -> None:
    """Builds kernels/ and installs it; everything else works without, so what is lost is only said."""
    if is_current(python):
        return
    if "CXX" not in os.environ and not any(shutil.which(name) for name in COMPILERS):
        print(f"{LOST}: no C++ compiler is here", file=sys.stderr)
        return
    print("building the library of fused operators, a minute or two", file=sys.stderr)
    command = [python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", "./kernels"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(f"{LOST}: {first_error(done.stdout)}", file=sys.stderr)


def first_error(output: str) -> str:
    """Of a build: the compiler's first error, CMake's with the sentence that follows it, or how pip begins."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if "CMake Error" in line:
            return " ".join(lines[number : number + 4])
        if " error: " in line:
            return line
    return lines[0] if lines else "pip says nothing"


def is_current(python: str) -> bool:
    """Whether a library is installed that is newer than all its sources."""
    where = "import ofq_kernels; print(ofq_kernels.library_path())"
    found = subprocess.run([python, "-c", where], capture_output=True, text=True, cwd=ROOT / "kernels" / "src")
    sources = [*(ROOT / "kernels" / "src").iterdir(), ROOT / "kernels" / "CMakeLists.txt"]
    built = Path(found.stdout.strip())
    return not found.returncode and all(file.stat().st_mtime < built.stat().st_mtime for file in sources)


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
