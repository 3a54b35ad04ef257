"""Pictures of a report in headless Chromium, at desktop and phone width, light and dark; a check that no page scrolls
sideways.

python tools/screenshots.py runs/digits-w4a4/report.html -o docs/images

Exit code 1 when a page is wider than its window; without Chromium a line says so and nothing is done. Chromium is
driven through its DevTools protocol on two pipes: windows narrower than 500 pixels and the dark scheme are emulated.
"""

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

WINDOWS = {"desktop": (1000, 1700), "phone": (390, 1700)}
COLOURS = 96  # of a picture: enough for text and bars, a third of the bytes
SCHEMES = ("light", "dark")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")


def chromium() -> str | None:
    """The path of Chromium or Chrome, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """Chromium with one open page; messages are JSON that ends with a zero byte."""

    def __init__(self, program: str) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, answers = os.pipe(), os.pipe()
        words = [program, *FLAGS, f"--user-data-dir={self.folder.name}", "about:blank"]
        shell = f'exec "$@" 3<&{commands[0]} 4>&{answers[1]}'  # the numbers that Chromium expects
        self.process = subprocess.Popen(
            ["sh", "-c", shell, "sh", *words], pass_fds=(commands[0], answers[1]), stderr=subprocess.DEVNULL
        )
        os.close(commands[0])
        os.close(answers[1])
        self.commands, self.answers = os.fdopen(commands[1], "wb"), os.fdopen(answers[0], "rb")
        self.count, self.session = 0, ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.commands.close()  # Chromium ends with its pipe
        self.process.wait()
        self.answers.close()
        self.folder.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self.count += 1
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": self.count, "method": method, "params": parameters, **session}
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while (answer := self.read()).get("id") != self.count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium ended")
            text += byte
        return dict(json.loads(text))

    def show(self, page: Path, width: int, height: int, scheme: str) -> int:
        """Open a page in a window of this size; return the width in pixels that the page takes."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=page.resolve().as_uri())
        while self.evaluate("document.readyState") != "complete":
            time.sleep(0.02)
        return int(self.evaluate("document.documentElement.scrollWidth"))

    def evaluate(self, expression: str) -> Any:
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def picture(self, full: bool) -> bytes:
        """PNG of the window, or of the whole page, in few colours."""
        from PIL import Image

        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        made = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB").quantize(
            COLOURS, dither=Image.Dither.NONE
        ).save(made, "png", optimize=True)
        return made.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--full", action="store_true", help="the whole page, not its first window")
    arguments = parser.parse_args()
    program = chromium()
    if program is None:
        print("no Chromium here: no pictures")
        return 0
    arguments.output.mkdir(parents=True, exist_ok=True)
    too_wide = False
    with Browser(program) as browser:
        for window, (width, height) in WINDOWS.items():
            for scheme in SCHEMES:
                taken = browser.show(arguments.report, width, height, scheme)
                file = arguments.output / f"report-{window}-{scheme}.png"
                file.write_bytes(browser.picture(arguments.full))
                print(f"{file}: {file.stat().st_size:,} bytes; the page takes {taken} of {width} pixels")
                too_wide |= taken > width
    return int(too_wide)


if __name__ == "__main__":
    sys.exit(main())
