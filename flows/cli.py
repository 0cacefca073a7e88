"""The `winnow` command: one command a stage and a flow, no logic. Imports happen inside, so that --help is quick."""

import errno
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from flows import filter_cli, label_cli
from flows.forget_cli import forget
from flows.plan_cli import plan
from flows.sampling_cli import edit, sample
from flows.weights_cli import weights

if TYPE_CHECKING:
    from tasks.config import RunConfig
    from winnow.partitions import StageRun

CONFIG = click.argument("config", type=click.Path(dir_okay=False), metavar="CONFIG")
AUDIT_SAMPLES = "audit-samples"
"""Command of the stage `sample`: `winnow sample` is for people's own prompts."""
WORKSPACE = click.argument("workspace", metavar="WORKSPACE")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="winnow")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait this long if another run holds the workspace.")
def cli(wait: float | None) -> None:
    """Curates image-text pairs free of people, violence and hate symbols, proves how free, and trains and checks GLIDE on them.

    To see it work: winnow demo. On your own data: winnow run CONFIG (docs/run-on-your-data.md). To go on after any
    interruption, run the same command again.
    """
    if wait is not None:
        os.environ["WINNOW_WAIT_SECONDS"] = str(wait)  # what tasks/session.py reads; a scheduled run sets the variable itself


@cli.command()
@click.option("--workspace", default="runs/demo", show_default=True, metavar="FOLDER", help="Where everything is written.")
@click.option("--scenes", default=None, type=click.IntRange(min=200), metavar="N", help="Pictures in the demo's world.")
@click.option("--port", default=8731, show_default=True, type=click.IntRange(1, 65535), help="Port of the demo's web server on 127.0.0.1.")
@click.option("--workers", default=0, type=click.IntRange(min=0), metavar="N", help="Partitions at a time; 0 takes every CPU.")
def demo(workspace: str, scenes: int | None, port: int, workers: int) -> None:
    """The whole pipeline on a small made-up web.

    Example: winnow demo --workspace /tmp/demo
    """
    from flows.environment import prepare

    prepare(workspace)
    from flows.demo import run_demo

    run_demo(workspace, scenes=scenes, port=port, workers=workers)


@cli.command()
@CONFIG
@click.option("--dry-run", is_flag=True, help="Check everything, print the settled config, do nothing.")
def run(config: str, dry_run: bool) -> None:
    """The whole pipeline on your own manifest and weights.

    Example: winnow run photos.yaml
    """
    settled = _settled(config)
    settled.download.check_contact()
    if dry_run:
        _print_config(settled)
        return
    from flows.environment import by_hand
    from flows.pipeline import pipeline
    from flows.summary import print_summary

    with by_hand():
        pipeline(settled)
    print_summary(settled.workspace)


@cli.command()
@CONFIG
def curate(config: str) -> None:
    """From a manifest to filtered shards: `winnow run` without training, and what may run on an object store.

    Example: winnow curate photos.yaml
    """
    settled = _settled(config)
    settled.download.check_contact()
    from flows.curate import curate
    from flows.environment import by_hand

    with by_hand():
        curate(settled)


@cli.command()
@CONFIG
def config(config: str) -> None:
    """Prints a config with every default spelled out, after checking it.

    Example: winnow config photos.yaml
    """
    _print_config(_settled(config))


def _stage(name: str, function: Callable[[], "Callable[[RunConfig], StageRun]"], text: str) -> None:
    """One command that runs one stage, without Prefect, on what earlier stages left in the workspace."""

    @CONFIG
    def command(config: str) -> None:
        settled = _settled(config)
        from tasks.announce import announce
        from tasks.session import session

        with session(settled):
            announce(function()(settled))

    command.__doc__ = f"{text}\n\nExample: winnow {name} photos.yaml"
    cli.command(name)(command)


def _data(stage: str) -> "Callable[[], Callable[[RunConfig], StageRun]]":
    def find() -> "Callable[[RunConfig], StageRun]":
        from tasks import stages

        found: Callable[[RunConfig], StageRun] = stages.STAGES[stage]
        return found

    return find


for _name, _text in {
    "manifest": "Reads the lists of urls: new and changed rows become new partitions.",
    "download": "Fetches every listed url; failures are rows with a cause.",
    "embed": "CLIP features of every downloaded image.",
    "duplicates": "Near-duplicates among all images, and images of evaluation sets; `score` drops them.",
    "similarity": "How well captions fit their images, if a rule asks for it.",
    "fit": "Labels, fits and certifies the filters.",
    "score": "The decision log: verdict and reasons of every listed sample.",
    "shard": "The kept samples as webdataset shards.",
    "weigh": "Weights of kept samples, if `importance` or down-weighted duplicates ask for them.",
    "words": "Words of captions before and after dropping, for the report.",
    "drift": "Are new images still like those the filters were certified on? A drift pauses promotion.",
    AUDIT_SAMPLES: "Images drawn by the trained model for captions of kept samples.",
    "regurgitation": "How close the samples come to training images.",
    "report": "The audit report, from what is in the workspace.",
}.items():
    _stage(_name, _data("sample" if _name == AUDIT_SAMPLES else _name), _text)


@cli.command()
@CONFIG
@click.option("--cause", "causes", multiple=True, metavar="CAUSE", help="Only failures by this cause; may be given several times.")
def retry(config: str, causes: tuple[str, ...]) -> None:
    """Fetches failures of finished partitions again: those that may have passed, or those of chosen causes.

    What was downloaded stays as it is. What follows from it is done again by the next run.

    Example: winnow retry photos.yaml --cause timeout --cause http_503
    """
    settled = _settled(config)
    from tasks.announce import announce
    from tasks.data import retry_stage
    from tasks.session import session
    from winnow.download import PASSING

    with session(settled):
        announce(retry_stage(settled, causes or (PASSING,)))


@cli.group()
def train() -> None:
    """Trains models: those of a run on its shards, or the demo's CLIP."""


@train.command("models")
@CONFIG
def train_models(config: str) -> None:
    """The run's recipes, on its shards, on Ray Train.

    Example: winnow train models photos.yaml
    """
    settled = _settled(config)
    from tasks.announce import announce
    from tasks.session import session
    from tasks.stages import STAGES

    with session(settled):
        announce(STAGES["train"](settled))


@train.command("clip")
@click.option("--recipe", default="demo", show_default=True, help="Which recipe of models/clip_training.py.")
@click.option("--out", default="runs/clip", show_default=True, type=click.Path(file_okay=False), help="Where weights and checkpoints go.")
def train_clip(recipe: str, out: str) -> None:
    """A small CLIP on the demo's world: how the shipped weights were made.

    Example: winnow train clip --recipe demo --out runs/clip
    """
    from models.clip_training import RECIPES, train_clip
    from winnow.errors import ConfigError

    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}. Choose from: {', '.join(RECIPES)}")
    for name, value in train_clip(RECIPES[recipe], out).items():
        click.echo(f"{name:<28} {value}")


@cli.group()
def labels() -> None:
    """Labels of the filters."""


@labels.command("import")
@CONFIG
@click.argument("filter_name", metavar="FILTER")
@click.argument("table", type=click.Path(dir_okay=False), metavar="TABLE")
@click.option("--origin", default="random", show_default=True, help="How the samples were drawn; decides whether they may certify.")
@click.option("--person", required=True, help="Who labelled.")
@click.option("--replace", is_flag=True, help="They overrule the store's labels where they differ; the old ones stay on record.")
def labels_import(config: str, filter_name: str, table: str, origin: str, person: str, replace: bool) -> None:
    """Adds labels from a table with the columns uid and value (1: must be dropped, 0: not), or from Label Studio's JSON.

    Example: winnow labels import photos.yaml people people.csv --person ada
    """
    settled = _settled(config)
    from tasks.labelling import import_table

    added = import_table(settled, filter_name, table, origin=origin, person=person, replace=replace)
    click.echo(f"{added:,} labels added for {filter_name}")


cli.add_command(label_cli.label)
labels.add_command(label_cli.labels_export)
labels.add_command(label_cli.labels_agreement)
cli.add_command(filter_cli.audit)
cli.add_command(filter_cli.filter_group)
cli.add_command(filter_cli.relabel)


@labels.command("ask")
@CONFIG
@click.argument("filter_name", metavar="FILTER")
@click.option("--origin", default="random", show_default=True, help="How to draw them: random, text_search or boundary.")
@click.option("--count", default=100, show_default=True, type=click.IntRange(min=1), help="How many images.")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for the images and the table to fill in.")
def labels_ask(config: str, filter_name: str, origin: str, count: int, out: str) -> None:
    """Draws images to be labelled: a folder of them, and labels.csv with an empty column `value`.

    Example: winnow labels ask photos.yaml people --origin random --count 500 --out to-label
    """
    settled = _settled(config)
    from tasks.labelling import ask

    num, policy = ask(settled, filter_name, origin=origin, count=count, out=out)
    click.echo(f"{policy}\n{num:,} images in {out}: fill in the column `value` of labels.csv (1: must be dropped, 0: not), then")
    click.echo(f"winnow labels import {config} {filter_name} {out}/labels.csv --origin {origin} --person YOU")


@cli.command()
@WORKSPACE
@click.argument("uid")
def explain(workspace: str, uid: str) -> None:
    """What happened to a sample and why. UID may be its first digits, or its url.

    Example: winnow explain runs/demo 3fa9c1
    """
    from winnow.explain import explain, render
    from winnow.workspace import existing_workspace

    click.echo(render(explain(existing_workspace(workspace), uid)))


@cli.command()
@WORKSPACE
def verify(workspace: str) -> None:
    """Recomputes every digest and the conservation law from the files; fails on any difference.

    Example: winnow verify runs/demo
    """
    from winnow.verify import render, verify
    from winnow.workspace import existing_workspace

    findings = verify(existing_workspace(workspace))
    click.echo(render(findings))
    if not findings.ok:
        sys.exit(1)


cli.add_command(forget)
cli.add_command(plan)
cli.add_command(weights)
cli.add_command(sample)
cli.add_command(edit)


def _settled(path: str) -> "RunConfig":
    """Reads and checks a config, and prepares Prefect's surroundings for it."""
    from tasks.config import read_config

    settled = read_config(path)
    from flows.environment import prepare

    prepare(settled.workspace)
    from tasks.session import preflight

    preflight(settled)
    return settled


def _print_config(settled: "RunConfig") -> None:
    import yaml

    from tasks.config import plain

    click.echo(yaml.safe_dump(plain(settled), sort_keys=False), nl=False)


def main() -> Any:
    """Runs the command; an error we know is one message and an exit code, without a traceback."""
    from winnow.errors import WinnowError

    try:
        return cli(standalone_mode=False)
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except click.Abort:
        click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(130)
    except WinnowError as problem:
        click.echo(f"winnow: {problem}", err=True)
        sys.exit(problem.exit_code)
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        click.echo(f"winnow: no space left for {problem.filename or 'a file'}. Make room; the same command goes on from here.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
