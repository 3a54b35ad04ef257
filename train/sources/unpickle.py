"""Read a torch checkpoint in a process of its own: `python -m ofq_deploy.train.sources.unpickle CHECKPOINT OUT`.

torch's weights-only unpickler builds tensors, plain containers and the classes of an explicit list, and refuses
everything else before it runs. The child writes plain arrays; the parent never unpickles.
"""

import argparse
import json
import pickle
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ofq_deploy.errors import ModelError

ALLOWED: list[Any] = [argparse.Namespace]
REFUSED = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """tensors: float32 by key, `module.` prefixes stripped; settings: the plain values of the file's `args`"""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]


def read_checkpoint(path: Path, ema: bool = False) -> Checkpoint:
    """The tensors and settings of a .pth checkpoint: a bare state dict, or a timm saver's dictionary.

    ema: take the moving average that training kept, where the file has one

    Raises ModelError when the file is missing, cut, holds no tensors, or would need more than tensors, plain
    containers and argparse's Namespace to be read.
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint {path}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tensors.safetensors"
        command = [
            sys.executable,
            "-m",
            "ofq_deploy.train.sources.unpickle",
            str(path.resolve()),
            str(out),
            str(int(ema)),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == REFUSED:
            raise ModelError(f"{path} {done.stderr.strip().splitlines()[-1]}")
        if done.returncode:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise ModelError(f"{path} cannot be read as a torch checkpoint: {last}")
        with safe_open(out, framework="pt") as file:
            header = json.loads(file.metadata()["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Checkpoint(tensors, header["settings"])


def _main(path: Path, out: Path, ema: bool) -> int:
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({forbidden[1]})" if forbidden else ""
        print(f"holds more than tensors and plain settings{what}, and is refused unread", file=sys.stderr)
        return REFUSED
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        print(
            f"is no whole torch checkpoint ({(str(error) or type(error).__name__).splitlines()[0][:160]})",
            file=sys.stderr,
        )
        return REFUSED
    if not isinstance(content, dict):
        print(f"holds a {type(content).__name__}, expected a dictionary of tensors", file=sys.stderr)
        return REFUSED
    if ema and "state_dict_ema" not in content:
        print("holds no moving average (state_dict_ema); leave --ema out", file=sys.stderr)
        return REFUSED
    wanted = "state_dict_ema" if ema else "state_dict" if "state_dict" in content else "model"
    state = content.get(wanted, content)
    tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        print("holds no tensors", file=sys.stderr)
        return REFUSED
    stated = content.get("args")
    settings = vars(stated) if isinstance(stated, argparse.Namespace) else stated if isinstance(stated, dict) else {}
    plain = {key: value for key, value in settings.items() if isinstance(value, (bool, int, float, str))}
    header = {"settings": plain}
    plain_tensors = {key: value.detach().float().contiguous().clone() for key, value in tensors.items()}
    save_file(plain_tensors, out, metadata={"checkpoint": json.dumps(header)})
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1"))
