"""How fast the label page is: from the key to the next picture on the screen, and images an hour, in headless Chromium.

    python benchmarks/label_page.py --images 300 --delay 0.3

The server waits `--delay` seconds before every answer. Time runs from the keyboard event to the frame after the next picture was
put there, by the browser's own clock. A wait for a picture that was not there yet counts in full.
Needs Playwright and a Chromium. Numbers of ours are in docs/benchmarks.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from filters.labels import LabelStore  # noqa: E402
from tests.label_world import make_batch, make_pictures  # noqa: E402


def measure(page: object, images: int, gap_ms: float) -> dict[str, float]:
    """Presses a key for each image, `gap_ms` after its picture stood."""
    began = time.monotonic()
    for number in range(images):
        while page.evaluate("performance.getEntriesByName('winnow-next-picture').length") < number:
            page.wait_for_timeout(2)
        page.wait_for_timeout(gap_ms)
        page.keyboard.press("x" if number % 10 else "a")
    seconds = time.monotonic() - began
    page.wait_for_timeout(200)
    took = np.array(page.evaluate("performance.getEntriesByName('winnow-next-picture').map((entry) => entry.duration)"))
    found = {f"p{q}_ms": round(float(np.quantile(took, q / 100)), 1) for q in (50, 95, 99)}
    return {
        "images": images,
        "gap_ms": gap_ms,
        **found,
        "max_ms": round(float(took.max()), 1),
        "images_an_hour": round(3600 * images / seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--side", type=int, default=1200, help="pixels of the longer side of the pictures")
    parser.add_argument("--delay", type=float, default=0.3, help="seconds before every answer of the server")
    parser.add_argument("--gaps", type=float, nargs="+", default=[100.0, 500.0, 2000.0], help="ms from picture to key, a run for each")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder)
        _, uids = make_pictures(root, rows=given.images // 2 + 10, side=given.side)
        with LabelStore.open(root / "labels.sqlite") as store:
            for number in range(len(given.gaps)):
                make_batch(store, uids, "query", name=f"run-{number}")
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for number, gap in enumerate(given.gaps):
            command = [sys.executable, "-m", "tests.label_world", str(root), "--delay", str(given.delay), "--batch", f"run-{number}"]
            command += ["--config", json.dumps({"session_images": 100_000})]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            try:
                page = chromium.new_page(viewport={"width": 1280, "height": 800})
                page.goto(server.stdout.readline().split(": ", 1)[1].strip())
                page.wait_for_selector("#stage img")
                page.wait_for_timeout(2000)
                print(json.dumps({"delay_s": given.delay, **measure(page, given.images, gap)}), flush=True)
                page.close()
            finally:
                server.terminate()
                server.wait()
        chromium.close()


if __name__ == "__main__":
    main()
