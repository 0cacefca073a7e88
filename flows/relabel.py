"""Relabelling on a schedule: ask people, go on when their labels are there, promote the better version."""

from typing import Literal

from prefect import flow, pause_flow_run
from prefect.input import RunInput

from tasks.config import RunConfig
from tasks.relabelling import relabel_one
from tasks.session import session

PAUSE_HOURS = 24
POLL_SECONDS = 10


class LabelsAreThere(RunInput):
    """The form that ends a pause."""

    person: str
    """Who says so."""
    note: str = ""


@flow
def relabel(config: RunConfig, filters: tuple[str, ...] = (), wait: Literal["exit", "pause"] = "exit") -> dict[str, str]:
    """Goes on with the round of each filter. Filter -> what happened.

    Args:
        filters: none: all of the run's.
        wait: "exit" ends while people label, and the next run goes on; "pause" shows a form and goes on when it is sent.
    """
    states: dict[str, str] = {}
    for name in filters or config.filters:
        with session(config):
            found = relabel_one(config, name)
        print(f"relabel {name}: {found.message}")
        states[name] = found.state
    waiting = [name for name, state in states.items() if state == "waiting"]
    if waiting and wait == "pause":
        form = LabelsAreThere.with_initial_data(
            description=f"Label {', '.join(waiting)} with `winnow label`, then send this form.", person=""
        )
        # Outside of the session: people may label for hours, and the workspace is free meanwhile.
        pause_flow_run(wait_for_input=form, timeout=PAUSE_HOURS * 3600, poll_interval=POLL_SECONDS)
        states |= relabel(config, tuple(waiting), "exit")
    return states
