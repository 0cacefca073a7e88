"""What Prefect adds to a stage: a name, retries with a pause, a time limit, and a table of what came of it."""

import sys
from collections.abc import Callable
from typing import Any

from prefect import Task, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import State

from tasks.announce import announce
from tasks.config import RunConfig
from winnow.errors import StepFailed, StorageError, WinnowError
from winnow.partitions import StageRun

Stage = Callable[[RunConfig], StageRun]
HOUR = 3600.0


def stage_task(stage: Stage, *, name: str, timeout_hours: float = 72) -> Task[[RunConfig], StageRun]:
    """A stage as one Prefect task. Receipts say what is done, so Prefect's own result cache stays off."""

    def run(config: RunConfig) -> StageRun:
        result = stage(config)
        announce(result)
        _publish(result)
        return result

    run.__doc__ = stage.__doc__
    return task(
        name=name,
        retries=2,
        retry_delay_seconds=10,
        retry_condition_fn=_worth_another_try,
        timeout_seconds=timeout_hours * HOUR,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(run)


def _worth_another_try(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Disks, networks and workers recover; settings, labels and damaged files do not."""
    problem = state.result(raise_on_failure=False)
    again = isinstance(problem, StepFailed | StorageError) or not isinstance(problem, WinnowError | AssertionError | TypeError)
    if again:
        print(f"{_task.name}: {type(problem).__name__}: {problem}\nwill be tried again if tries are left", file=sys.stderr)
    return again


def _publish(result: StageRun) -> None:
    rows = [{"what": key, "rows": value} for key, value in result.counts.items()]
    rows += [{"what": "partitions done now", "rows": result.ran}, {"what": "partitions up to date", "rows": result.skipped}]
    key = "".join(letter if letter.isalnum() else "-" for letter in result.stage.lower())
    create_table_artifact(key=f"winnow-{key}", table=rows, description=f"{result.stage}: {result.seconds:.1f} s")
