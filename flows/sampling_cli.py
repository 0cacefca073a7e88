"""`winnow sample` and `winnow edit`: images for people's own prompts. No logic: that is in models/orders.py."""

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from models.orders import EditOrder, Order

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
FILE = click.Path(dir_okay=False)
OPTIONS = (
    click.option("--model", default="base", show_default=True, metavar="MODEL", help="A diffusion model of models/catalog.py."),
    click.option("--weights", metavar="PATH", help="Its weights: a .safetensors or .pt file, a checkpoint, or a folder of checkpoints."),
    click.option("--upsampler", metavar="MODEL", help="Enlarges the samples: upsampler or upsampler-inpaint, from 64 to 256 px."),
    click.option("--upsampler-weights", metavar="PATH", help="As --weights."),
    click.option("--sampler", metavar="NAME", help="ddpm, ddim, plms or dpm++2m; default: what --steps says, else ddpm."),
    click.option("--steps", metavar="STEPS", help="A count, ddim50, fast27, snr25 or counts of sections; default: the sampler's own."),
    click.option("--eta", default=0.0, show_default=True, type=float, help="Noise of DDIM, 0 to 1."),
    click.option("--interval", nargs=2, type=float, metavar="LOW HIGH", help="Timesteps (0 to 999) with guidance; default: all."),
    click.option("--guide", metavar="NAME", help="A CLIP that pushes as well: noised-clip, another noised one, or public."),
    click.option("--guide-weights", metavar="PATH", help="Of a noised CLIP, as --weights; of the public one see --clip-weights."),
    click.option("--guide-scale", default=3.0, show_default=True, type=float, help="Of the guide's gradient."),
    click.option("--samples", default=1, show_default=True, type=click.IntRange(min=1), metavar="N", help="Samples of each prompt."),
    click.option("--rerank", type=click.IntRange(min=1), metavar="K", help="Keep the K samples of each prompt that CLIP likes best."),
    click.option("--clip", default="ViT-B-16/openai", show_default=True, metavar="NAME", help="The public CLIP: MODEL/WEIGHTS, or demo."),
    click.option("--clip-weights", type=FILE, metavar="FILE", help="Its weights; default: the cache, then the network."),
    click.option(
        "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the first sample; each further has the next."
    ),
    click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Images at a time; default: 1 on a CPU, 16 on a GPU."),
    click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:1; default: a GPU if there is one."),
    click.option(
        "--precision",
        default="float32",
        show_default=True,
        type=click.Choice(["float32", "bfloat16"]),
        help="bfloat16 allows for it where it is faster: GPUs, CPUs with AMX, AMD's with AVX512-BF16.",
    ),
    click.option("--out", required=True, type=click.Path(file_okay=False), metavar="FOLDER", help="For PNGs and grid.png."),
)


def sampling_options(command: CommandT) -> CommandT:
    """All that the two commands have in common."""
    return functools.reduce(lambda done, option: option(done), reversed(OPTIONS), command)


@click.command()
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@click.option("--file", type=FILE, metavar="FILE", help="More prompts, one a line; an empty line is the empty prompt.")
@click.option("--guidance", default=3.0, show_default=True, type=float, help="Scale of classifier-free guidance; 1 is none.")
@sampling_options
def sample(prompts: tuple[str, ...], file: str | None, **options: Any) -> None:
    """Draws images for prompts: PNGs that say how they were made, and a grid of them.

    Example: winnow sample "a red barn" "two boats" --weights base.safetensors --samples 4 --out barns
    """
    from models.sample_files import read_prompts

    _fill(_order((*prompts, *(read_prompts(file) if file else [])), options), None)


@click.command()
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@click.option("--image", required=True, type=FILE, metavar="FILE", help="The picture to edit; its middle square is taken.")
@click.option("--mask", type=FILE, metavar="FILE", help="Of the picture's size: white is filled in, black stays.")
@click.option(
    "--strength", default=1.0, show_default=True, type=float, help="How far the picture is noised, up to 1: what no mask keeps goes."
)
@click.option(
    "--fill-in",
    type=click.Choice(["model", "replacement"]),
    help="By a model trained to, or by replacement, which any can; default: as the model was trained.",
)
@click.option("--guidance", default=5.0, show_default=True, type=float, help="Scale of classifier-free guidance; 1 is none.")
@sampling_options
def edit(prompts: tuple[str, ...], image: str, mask: str | None, strength: float, fill_in: Any, **options: Any) -> None:
    """Fills in the white of a mask (--mask), or draws a picture anew from its rough shape (--strength), or both.

    Example: winnow edit "a red barn" --image field.png --mask mask.png --model base-inpaint --weights inpaint.safetensors --out barns
    """
    from models.orders import EditOrder

    edited = EditOrder(image=image, mask=mask, strength=strength, fill_in=fill_in)
    _fill(_order(prompts or ("",), options), edited)


def _order(prompts: tuple[str, ...], options: dict[str, Any]) -> "Order":
    from models.orders import Order
    from models.sampling import SampleSettings

    settings = SampleSettings(
        sampler=options.pop("sampler"),
        steps=options.pop("steps"),
        eta=options.pop("eta"),
        guidance_scale=options.pop("guidance"),
        guidance_interval=options.pop("interval") or None,
    )
    renamed = {"num_samples": options.pop("samples"), "keep": options.pop("rerank"), "batch_size": options.pop("batch")}
    return Order(prompts=prompts, settings=settings, **renamed, **options)


def _fill(order: "Order", edited: "EditOrder | None") -> None:
    from models.orders import fill

    def seen(done: int, total: int) -> None:
        click.echo(f"\r{done:,} of {total:,} images", nl=done == total, err=True)

    count = fill(order, edited, seen=seen if sys.stderr.isatty() else None)
    click.echo(f"{count:,} {'image' if count == 1 else 'images'} and grid.png in {order.out}")
