"""The driver of tests/test_cluster.py, in a process of its own: it joins the cluster that RAY_ADDRESS names."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from winnow.errors import WinnowError
from winnow.partitions import EVERY_CPU, Outcome, run_step, stop_ray
from winnow.receipts import Work
from winnow.storage import Storage

NUM_PARTITIONS = 12


def slow(storage: Storage, name: str, **unused: Any) -> Outcome:
    """Writes one file in half a second, and leaves a file named by the process each time that it is begun."""
    storage.write_text(f"begun/{name}/{os.getpid()}", "")
    time.sleep(0.5)
    storage.write_text(f"out/{name}", f"what {name} holds")
    return Outcome(outputs=(f"out/{name}",), counts={"rows": 3})


def works() -> list[Work]:
    return [Work(name=f"{number:02d}", inputs={"in": "1"}) for number in range(NUM_PARTITIONS)]


def main(workspace: str) -> None:
    try:
        result = run_step(slow, works(), Storage(workspace), stage="slow", version=1, workers=EVERY_CPU)
        print(json.dumps({"outputs": result.outputs, "counts": result.counts, "ran": result.ran}))
    except WinnowError as problem:
        print(json.dumps({"refused": f"{type(problem).__name__}: {problem}"}))
    finally:
        stop_ray()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import node_loss  # by its name, so that workers find the step

    node_loss.main(sys.argv[1])
