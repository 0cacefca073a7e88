"""What a run prints at its end: the report's table, and where the report is."""

import json

import click

from winnow.audit import render_table
from winnow.run_files import SUMMARY
from winnow.workspace import REPORT, existing_workspace


def print_summary(workspace: str) -> None:
    """The table of a finished run, from the report's own numbers."""
    storage = existing_workspace(workspace)
    click.echo()
    click.echo(render_table(json.loads(storage.read_bytes(SUMMARY))))
    click.echo(f"\nReport: {storage.place(REPORT)}")
