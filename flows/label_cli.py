"""Commands for people who label: the page, agreement, labels into files. Registered in flows/cli.py."""

import getpass

import click

CONFIG = click.argument("config", type=click.Path(dir_okay=False), metavar="CONFIG")
FILTER = click.argument("filter_name", metavar="FILTER")
MODES = ("query", "audit", "calibrate", "test", "adjudicate", "triage", "pairs", "compare")


@click.command()
@CONFIG
@FILTER
@click.option("--mode", default="query", show_default=True, type=click.Choice(MODES), help="How people are asked.")
@click.option("--batch", default=None, metavar="NAME", help="What to work on. Default: the mode's open batch, or one drawn now.")
@click.option("--origin", default=None, type=click.Choice(("random", "text_search", "boundary")), help="How to draw a new batch.")
@click.option("--count", default=200, show_default=True, type=click.IntRange(min=1), metavar="IMAGES", help="Size of a new batch.")
@click.option(
    "--overlap", default=None, type=click.IntRange(min=1), metavar="PEOPLE", help="How many answer each image. Default: 2 if blind, or 1."
)
@click.option("--person", "people", multiple=True, metavar="NAME", help="Who labels; a link for each. Default: you.")
@click.option("--port", default=8741, show_default=True, type=click.IntRange(0, 65535), help="Of 127.0.0.1; 0 takes a free one.")
def label(
    config: str,
    filter_name: str,
    mode: str,
    batch: str | None,
    origin: str | None,
    count: int,
    overlap: int | None,
    people: tuple[str, ...],
    port: int,
) -> None:
    """A page on this machine to label images on, with the keyboard. Prints a link for each person; Ctrl-C ends it.

    Example: winnow label photos.yaml people --mode query --origin boundary --count 200

    FILTER is any name in mode pairs, and two folders of samples (base:base-cfg) in mode compare.
    """
    from flows.cli import _settled

    settled = _settled(config)
    from tasks.label_page import label as serve_page

    serve_page(
        settled,
        filter_name,
        mode=mode,  # type: ignore[arg-type]  # click has checked it
        batch=batch,
        origin=origin,  # type: ignore[arg-type]
        count=count,
        overlap=overlap,
        people=people or (getpass.getuser(),),
        port=port,
        announce=click.echo,
    )


@click.command("export")
@CONFIG
@FILTER
@click.argument("table", type=click.Path(dir_okay=False), metavar="TABLE")
def labels_export(config: str, filter_name: str, table: str) -> None:
    """Writes every answer that stands to TABLE: .csv, .parquet, or .json for Label Studio.

    Example: winnow labels export photos.yaml people people.csv
    """
    from flows.cli import _settled

    settled = _settled(config)
    from tasks.label_page import export

    click.echo(f"{export(settled, filter_name, table):,} answers written to {table}")


@click.command("agreement")
@CONFIG
@FILTER
def labels_agreement(config: str, filter_name: str) -> None:
    """How far people agree on a filter's images, and how each of them labels.

    Example: winnow labels agreement photos.yaml people
    """
    from flows.cli import _settled

    settled = _settled(config)
    from tasks.label_page import agreement

    found, pairs, people, conflicts = agreement(settled, filter_name)
    cells = f"both drop {found.both_yes:,}, one of two {found.first_only + found.second_only:,}, both keep {found.both_no:,}"
    click.echo(f"{len(pairs):,} pairs of people: {cells}; {conflicts:,} open conflicts")
    for name in ("raw", "positive", "negative", "kappa", "ac1"):
        share = getattr(found, name)
        click.echo(f"{name:<10} {_number(share.value)}   95 %: {_number(share.low)} to {_number(share.high)}")
    click.echo(f"\n{'person':<16} {'answers':>8} {'median s':>9} {'unsure':>7} {'skipped':>8} {'early':>6}  planted positives noticed")
    for person in people:
        noticed = person.sensitivity
        click.echo(
            f"{person.person:<16} {person.answers:>8,} {_number(person.median_seconds, 2):>9} {person.unsure:>7,} {person.skipped:>8,} "
            f"{person.early:>6,}  {_number(noticed.value)} (95 %: {_number(noticed.low)} to {_number(noticed.high)})"
        )


def _number(value: float | None, digits: int = 3) -> str:
    return "—" if value is None else f"{value:.{digits}f}"
