"""Print the five likeliest labels of each image, one JSON object a line: python predict.py IMAGE ..."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent
HOW = json.loads((FOLDER / "preprocess.json").read_text(encoding="utf-8"))
LABELS = (FOLDER / "labels.txt").read_text(encoding="utf-8").split("\n")


def prepare(path: str) -> NDArray[np.float32]:
    """An image file as float32 [1, channels, size, size]; sizes are rounded as torchvision does."""
    size, channels = HOW["size"], len(HOW["mean"])
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):  # 16-bit greyscale: converting would saturate
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = (int(HOW["resize"] * side / min(image.size)) for side in image.size)
    image = image.resize((width, height), Image.Resampling[HOW["interpolation"].upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, dtype=np.float32).reshape(size, size, channels).transpose(2, 0, 1)
    mean, std = (np.asarray(HOW[key], dtype=np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    return ((pixels / np.float32(255) - mean) / std)[None]


onnxruntime.set_default_logger_severity(3)  # errors only: it warns of an input with a default value, which is meant
options = onnxruntime.SessionOptions()
for library in FOLDER.glob("*ofq_kernels.*"):  # fused operators, where the model has some
    options.register_custom_ops_library(str(library))
session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), options, providers=["CPUExecutionProvider"])
for path in sys.argv[1:]:
    logits = session.run(None, {session.get_inputs()[0].name: prepare(path)})[0][0].astype(np.float64)
    powers = np.exp(logits - logits.max())
    likeliest = np.argsort(-powers, kind="stable")[:5]
    top5 = [{"label": LABELS[k], "probability": powers[k] / powers.sum()} for k in likeliest]
    print(json.dumps({"image": path, "top5": top5}))
