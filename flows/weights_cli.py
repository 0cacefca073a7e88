"""`winnow weights`: released checkpoints and vocabularies, to and from our form. No logic: that is in models/released.py."""

import click

MODEL = click.option("--model", required=True, metavar="MODEL", help="A name of models/catalog.py.")
BPE = "glide-bpe"
"""What `fetch` calls GLIDE's vocabulary, which is no model."""


@click.group()
def weights() -> None:
    """Released weights: fetch them, read them, write ours in their form."""


@weights.command("fetch")
@click.argument("what", metavar="MODEL")
@click.option("--out", default=None, type=click.Path(dir_okay=False), metavar="FILE", help="A .safetensors file; default: in the cache.")
@click.option("--from", "source", default=None, metavar="URL", help="Who serves the files; default: who released them.")
@click.option("--cache", default=None, type=click.Path(file_okay=False), metavar="FOLDER", help="Where downloads are kept.")
def fetch(what: str, out: str | None, source: str | None, cache: str | None) -> None:
    """Fetches a released model (base, base-inpaint, upsampler, upsampler-inpaint, noised-clip) and imports it; or glide-bpe.

    Their digests were not published: that of the first download is recorded beside the file, and holds from then on.

    Example: winnow weights fetch base --out base.safetensors
    """
    import logging
    from pathlib import Path

    folder = Path(cache) if cache is not None else None
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if what == BPE:
        from models import glide_bpe

        click.echo(glide_bpe.fetch_bpe(source or glide_bpe.SOURCE, folder))
        return
    from models import released

    with _Shown(what) as shown:
        path = released.fetch_weights(what, out, source=source or released.SOURCE, cache=folder, seen=shown.seen)
    click.echo(path)


@weights.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False), metavar="FILE...")
@MODEL
@click.option("--out", required=True, type=click.Path(dir_okay=False), metavar="FILE", help="A .safetensors file.")
def import_(files: tuple[str, ...], model: str, out: str) -> None:
    """Turns a released checkpoint into safetensors; a noised CLIP comes from its two files. No code in a file is run.

    Example: winnow weights import base.pt --model base --out base.safetensors
    """
    from models.released import import_weights

    click.echo(f"{out}: {import_weights(files, model, out):,} parameters of {model}")


@weights.command("export")
@click.argument("path", type=click.Path(), metavar="WEIGHTS")
@MODEL
@click.option("--out", "outs", required=True, multiple=True, type=click.Path(dir_okay=False), metavar="FILE", help="A .pt file; CLIP: two.")
def export(path: str, model: str, outs: tuple[str, ...]) -> None:
    """Turns a checkpoint (step-NNNNNN, its EMA) or a safetensors file into the released form: a state dict, two for a noised CLIP.

    Example: winnow weights export runs/x/checkpoints/base/step-500000 --model base --out base.pt
    """
    from models.released import export_weights

    click.echo(f"{', '.join(outs)}: {export_weights(path, model, outs):,} parameters of {model}")


class _Shown:
    """A download's progress: a line that renews itself on a terminal, one a minute without one."""

    def __init__(self, title: str) -> None:
        from winnow.progress import Progress

        self._progress = Progress(f"fetch {title}", total=0, unit="MB")

    def __enter__(self) -> "_Shown":
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.__exit__(*exception)

    def seen(self, count: int, total: int | None) -> None:
        self._progress.done, self._progress.total = count // 1_000_000, (total or count) // 1_000_000
        self._progress.tick()
