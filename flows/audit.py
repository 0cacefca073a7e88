"""The report of everything that ran."""

from prefect import flow
from prefect.artifacts import create_link_artifact

from tasks.config import RunConfig
from tasks.evaluation import report
from tasks.session import session
from winnow.workspace import REPORT


@flow
def audit(config: RunConfig) -> None:
    """Writes the report from the files of the workspace alone."""
    with session(config) as storage:
        report(config)
        link = f"file://{storage.full(REPORT)}" if storage.is_local else storage.place(REPORT)
        create_link_artifact(key="winnow-report", link=link, link_text="Winnow audit report")
