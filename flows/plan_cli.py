"""`winnow plan`: hours, bytes, GPU hours and money of a job. Registered in flows/cli.py."""

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from winnow.plan.settings import PlanSettings


@click.command()
@click.argument("plan", type=click.Path(dir_okay=False), metavar="PLAN")
@click.option("--from", "workspace", default=None, metavar="WORKSPACE", help="Take unit rates from the receipts of a finished run.")
@click.option("--measure", is_flag=True, help="Take unit rates on this machine now: about a minute, on one CPU thread or one GPU.")
@click.option(
    "--images", default=None, type=click.Path(file_okay=False), metavar="FOLDER", help="Photos to measure with; default: drawn ones."
)
@click.option("--model", default="ViT-B-16", show_default=True, help="Which CLIP to measure.")
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16"]), help="In which it is measured.")
@click.option("--json", "as_json", is_flag=True, help="Everything, unrounded, as JSON.")
def plan(plan: str, workspace: str | None, measure: bool, images: str | None, model: str, precision: str, as_json: bool) -> None:
    """Hours, bytes, GPU hours and money of a job described in PLAN, each with its formula.

    Numbers in PLAN itself come first, then measured ones (--measure), then those of a run (--from), then defaults, which name their source.

    Example: winnow plan docs/glide-plan.yaml --from runs/demo
    """
    from winnow.plan.plan import make_plan
    from winnow.plan.settings import read_settings

    settings = read_settings(plan)
    if measure:
        settings = _measured(settings, images, model, precision)
    if workspace is not None:
        settings = _observed(settings, workspace)
    made = make_plan(settings)
    if as_json:
        json.dump(made.as_json(), sys.stdout, indent=1)
        click.echo()
        return
    from rich.console import Console

    from winnow.plan.show import show

    show(made, Console(width=None if sys.stdout.isatty() else 140))


def _measured(settings: "PlanSettings", images: str | None, model: str, precision: str) -> "PlanSettings":
    import platform

    from models.clip_embedder import ClipConfig
    from tasks.unit_rates import drawn_images, images_of, measured_numbers
    from winnow.plan.settings import with_numbers

    numbers = measured_numbers(ClipConfig(model=model, precision=precision), images_of(images) if images else drawn_images())
    if images is None:  # drawn pictures tell nothing about the web's
        for name in ("image_bytes", "crops_per_image"):
            del numbers[name]
    return with_numbers(settings, numbers, f"measured on {platform.node()}, {model} in {precision}")


def _observed(settings: "PlanSettings", workspace: str) -> "PlanSettings":
    from winnow.plan.observed import observed_numbers
    from winnow.plan.settings import with_numbers
    from winnow.workspace import existing_workspace

    storage = existing_workspace(workspace)
    return with_numbers(settings, observed_numbers(storage, settings), f"receipts of {storage.url}")
