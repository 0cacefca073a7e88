"""`winnow forget`: takes samples out of everything that a run wrote. Registered in flows/cli.py."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from winnow.forget import Plan


@click.command()
@click.argument("where", metavar="WORKSPACE")
@click.option(
    "--uid", "uids", multiple=True, metavar="UID", help="32 hex digits, as in the decision log. May be given again, as may the next two."
)
@click.option("--url", "urls", multiple=True, metavar="URL", help="As it is listed; all its captions are meant.")
@click.option("--sha256", "sha256s", multiple=True, metavar="DIGEST", help="Of the image's original bytes.")
@click.option(
    "--list",
    "lists",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="File with a uid, url, domain or sha256 on each line, or parquet.",
)
@click.option("--reason", default="", metavar="TEXT", help="Goes on record. Must not name the person.")
@click.option("--with-labels", is_flag=True, help="Their labels go, too; filters that learned from them are fitted anew at the next run.")
@click.option("--dry-run", is_flag=True, help="Tell what would go, and change nothing.")
def forget(
    where: str, uids: tuple[str, ...], urls: tuple[str, ...], sha256s: tuple[str, ...], lists: tuple[str, ...], reason: str,
    with_labels: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Forgets samples: takes them out of every file of WORKSPACE (or of a config's), and leaves tombstones in the log.

    Without a uid, url, digest or list it completes what was cut short.

    Example: winnow forget runs/photos --url https://example.org/me.jpg --reason "request 2026-114"
    """
    from tasks.forgetting import forget_samples, settings_of
    from winnow.forget_match import Wanted, read_list

    wanted = Wanted(uids=frozenset(uids), urls=frozenset(urls), sha256s=frozenset(sha256s))
    for path in lists:
        wanted |= read_list(path)
    settled = settings_of(where)
    found = forget_samples(settled, wanted, reason=reason, erase_labels=with_labels, dry_run=dry_run)
    if found.plan is not None:
        _tell(found.plan, found.counts, dry_run=dry_run)
    for event in found.events:
        click.echo(f"done: {event.stem}.json, {event.samples:,} samples")
    if not dry_run:
        click.echo(
            f"The sources still list them, and copies elsewhere were not touched (docs/forget.md). Check: winnow verify {settled.workspace}"
        )


def _tell(planned: "Plan", counts: dict[str, int], *, dry_run: bool) -> None:
    click.echo(
        f"{len(planned.matches):,} samples{' would be forgotten' if dry_run else ''}: "
        + ", ".join(f"{number:,} {was}" for was, number in counts.items())
    )
    for match in planned.matches[:20]:
        click.echo(f"  {match.uid}  {match.was:<10} {match.partition}")
    if len(planned.matches) > 20:
        click.echo(f"  and {len(planned.matches) - 20:,} more")
    click.echo(f"{len(planned.partitions):,} partitions and {len(planned.groups):,} groups of shards hold them")
    for line in planned.models:
        click.echo(f"learned from it: {line}")
    for folder in planned.filters:
        click.echo(f"learned from it: {folder} has its features as a support vector; --with-labels has the filter fitted anew")
