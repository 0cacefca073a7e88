"""Commands about filters: audits, cards, rounds of relabelling. Registered in flows/cli.py."""

import getpass
import shlex
import sys

import click

CONFIG = click.argument("config", type=click.Path(dir_okay=False), metavar="CONFIG")
FILTER = click.argument("filter_name", metavar="FILTER")
PERSON = click.option("--person", default=None, metavar="NAME", help="Who does it; goes on record. Default: you.")


@click.group()
def audit() -> None:
    """Audits: people look at what a filter keeps."""


@audit.command("draw")
@CONFIG
@FILTER
@click.option("--seed", required=True, type=click.IntRange(min=0), help="Of the draw: the auditor's own, never used for this filter.")
@click.option("--count", default=None, type=click.IntRange(min=1), metavar="IMAGES", help="Default: 1024, or 3000 if stratified.")
@click.option("--honeypots", default=50, show_default=True, type=click.IntRange(min=0), help="Known positives mixed in unannounced.")
@click.option("--max-leak", default=0.005, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="SHARE",
              help="The audit passes if at most this share of kept images can be positives.")  # fmt: skip
@click.option("--overlap", default=2, show_default=True, type=click.IntRange(min=1), metavar="PEOPLE", help="How many look at each image.")
@click.option("--stratified", is_flag=True, help="Draw by score from all judged images, for a rare class.")
@PERSON
def audit_draw(
    config: str,
    filter_name: str,
    seed: int,
    count: int | None,
    honeypots: int,
    max_leak: float,
    overlap: int,
    stratified: bool,
    person: str | None,
) -> None:
    """Draws a batch of kept images for the label page.

    Example: winnow audit draw photos.yaml people --seed 20261121
    """
    from flows.cli import _settled

    settled = _settled(config)
    from filters.audit_batch import AuditPlan
    from tasks.auditing import draw

    size = count or (3_000 if stratified else 1_024)
    plan = AuditPlan(seed=seed, count=size, honeypots=honeypots, max_leak=max_leak, overlap=overlap, stratified=stratified)
    batch = draw(settled, filter_name, plan, person=person or getpass.getuser())
    if earlier := batch.details.get("earlier"):
        click.echo(f"Seed {seed} drew {earlier[0]} before, so this batch will prove nothing (stale): draw by another seed.", err=True)
    people = [f"--person NAME{number}" for number in range(1, overlap + 1)] if overlap > 1 else ["--person NAME"]
    click.echo(f"{batch.wanted:,} images in batch {batch.name} of {filter_name}, {overlap} of the named people for each:")
    click.echo(f"winnow label {config} {filter_name} --mode audit --batch {batch.name} {' '.join(people)}")
    click.echo(f"Then: winnow audit result {config} {filter_name} --batch {batch.name}")


@audit.command("result")
@CONFIG
@FILTER
@click.option("--batch", default=None, metavar="NAME", help="Default: the latest audit of the filter.")
@PERSON
def audit_result(config: str, filter_name: str, batch: str | None, person: str | None) -> None:
    """What an audit's answers prove, into the workspace for report and card. Ends with 1 unless it passes.

    Example: winnow audit result photos.yaml people
    """
    from flows.cli import _settled

    settled = _settled(config)
    from tasks.auditing import result

    command = shlex.join(["winnow", *sys.argv[1:]])
    found, path = result(settled, filter_name, batch, person=person or getpass.getuser(), command=command)
    click.echo(f"{found['status']}: {'; '.join(found['reasons'])}")
    if found["n"]:
        click.echo(f"{found['found']:,} found in {found['n']:,}. {found['claim']} ({found['confidence']:.0%} confidence)")
        if planted := found["honeypots"]["planted"]:
            seen, sees = found["honeypots"]["found"], found["honeypots"]["sensitivity_at_least"]
            click.echo(f"{seen:,} of {planted:,} known positives were seen: inspectors are taken to see {sees:.1%} of all.")
    click.echo(path)
    if found["status"] != "pass":
        sys.exit(1)


@click.group("filter")
def filter_group() -> None:
    """Filters: their cards, and what stands between a new version and its use."""


@filter_group.command("card")
@CONFIG
@click.argument("filter_name", metavar="NAME")
@click.option("--out", default=None, type=click.Path(dir_okay=False), help="The page. Default: card-VERSION.html beside the versions.")
@click.option("--version", default=None, metavar="VERSION", help="Default: the one the decisions were made with.")
@click.option("--table", default=None, type=click.Path(dir_okay=False), help="Further columns to slice by, with a column uid.")
def filter_card(config: str, filter_name: str, out: str | None, version: str | None, table: str | None) -> None:
    """One page about a filter: what it promises, on what grounds, and what it does not cover.

    Example: winnow filter card photos.yaml people --out people.html
    """
    from flows.cli import _settled

    settled = _settled(config)
    from tasks.cards import write_card

    click.echo(write_card(settled, filter_name, out=out, version=version, table=table))


@filter_group.command("resume")
@CONFIG
@click.argument("filter_name", metavar="NAME")
@click.option("--reason", required=True, help="Why new versions may come in force again; goes on record.")
@PERSON
def filter_resume(config: str, filter_name: str, reason: str, person: str | None) -> None:
    """Ends a pause of promotion, for example after drift.

    Example: winnow filter resume photos.yaml people --reason "new source, labelled anew"
    """
    from flows.cli import _settled

    settled = _settled(config)
    from tasks.relabelling import resume_promotion

    row = resume_promotion(settled, filter_name, person=person or getpass.getuser(), reason=reason)
    click.echo(f"promotion of {filter_name} goes on; it was paused by: {row['pause']}")


@filter_group.command("automation")
def filter_automation() -> None:
    """Adds to the Prefect server that PREFECT_API_URL names: a drift pauses the relabel deployment. Once, after deploying.

    Example: winnow filter automation
    """
    from flows.automations import ship_drift_automation

    click.echo(f"on the server: {ship_drift_automation()}")


@click.command()
@CONFIG
@FILTER
def relabel(config: str, filter_name: str) -> None:
    """A round of relabelling, as far as people's labels allow: asks, or fits, compares and promotes. The same command goes on.

    Example: winnow relabel photos.yaml people
    """
    from flows.cli import _settled

    settled = _settled(config)
    from tasks.relabelling import relabel_filter

    found = relabel_filter(settled, filter_name)
    click.echo(f"round {found.number} of {filter_name}: {found.state}. {found.message.replace('CONFIG', config)}")
