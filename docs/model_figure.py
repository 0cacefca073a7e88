"""Draws docs/model.svg: what each part of the models computes, beside the file that holds it. Sizes are read from models/catalog.py.

python docs/model_figure.py
"""

import html
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.catalog import MODELS
from models.unet import num_parameters

OUT = Path(__file__).parent / "model.svg"
WIDTH, HEIGHT = 1240, 1146
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, 'Liberation Sans', sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', 'DejaVu Sans Mono', monospace"
INK, SOFT, LINE = "#1d2733", "#55616f", "#7b8794"
HUES = {  # panel, border, title
    "text": ("#eaf3fc", "#8db9e6", "#1c5f9e"),
    "net": ("#fff4e3", "#e8b869", "#95600d"),
    "step": ("#eaf7ee", "#8ccaa0", "#23703f"),
    "clip": ("#f4eefb", "#bb9ce0", "#653a9b"),
    "train": ("#f2f4f6", "#b4bec9", "#46515e"),
}


@dataclass
class Drawing:
    """Pieces of an SVG, from back to front."""

    pieces: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, *, size: float = 13, colour: str = INK, anchor: str = "start", style: str = "") -> None:
        self.pieces.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{" " + style if style else ""}>'
            f"{html.escape(words, quote=False)}</text>"
        )

    def panel(self, x: float, y: float, width: float, height: float, hue: str, title: str) -> None:
        fill, border, ink = HUES[hue]
        self.pieces.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="14" fill="{fill}" stroke="{border}"/>')
        self.text(x + 18, y + 27, title, size=16, colour=ink, style='font-weight="650"')

    def box(
        self, x: float, y: float, width: float, height: float, hue: str, title: str, lines: tuple[str, ...] = (), file: str = ""
    ) -> None:
        """A white box: a title, a few lines, and at its foot the file."""
        border = HUES[hue][1]
        self.pieces.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="#ffffff" stroke="{border}" stroke-width="1.4"/>'
        )
        middle = x + width / 2
        rows = 18 + 17 * len(lines) + (19 if file else 0)
        top = y + (height - rows) / 2 + 14
        self.text(middle, top, title, size=13.5, anchor="middle", style='font-weight="600"')
        for number, line in enumerate(lines):
            self.text(middle, top + 18 + 17 * number, line, size=12, colour=SOFT, anchor="middle")
        if file:
            self.file(middle, top + 20 + 17 * len(lines), file, anchor="middle")

    def file(self, x: float, y: float, name: str, *, anchor: str = "start", hue: str = "#0b6b77") -> None:
        self.text(x, y, name, size=10.8, colour=hue, anchor=anchor, style=f'font-family="{MONO}"')

    def arrow(self, *points: tuple[float, float], dashed: bool = False, hue: str = "") -> None:
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        colour = HUES[hue][2] if hue else LINE
        self.pieces.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash} marker-end="url(#head{hue})"/>')


def head(hue: str = "") -> str:
    """The point of an arrow."""
    return (
        f'<marker id="head{hue}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        f'<path d="M0 0.8 L9.5 5 L0 9.2 z" fill="{HUES[hue][2] if hue else LINE}"/></marker>'
    )


def millions(model: torch.nn.Module) -> str:
    return f"{num_parameters(model) / 1e6:.0f} M"


def draw() -> str:
    """The whole figure."""
    page = Drawing()
    caption(page)
    unet(page)
    process(page)
    noised_clip(page)
    upsampler(page)
    training(page)
    body = "\n".join(page.pieces)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="{FONT}" role="img" aria-labelledby="title">\n'
        '<title id="title">What each part of the models computes, beside the file that holds it</title>\n'
        f"<defs>{head()}{head('text')}</defs>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="16" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def caption(page: Drawing) -> None:
    text = MODELS["base"].config.text
    page.panel(24, 20, 1192, 150, "text", "The caption")
    page.box(44, 66, 150, 76, "text", "caption", ("“a red barn in snow”",))
    page.arrow((194, 104), (226, 104))
    page.box(228, 66, 236, 86, "text", "byte pairs", (f"{text.context_length} tokens; mask: which are real",), "models/glide_bpe.py")
    page.arrow((464, 104), (496, 104))
    blocks = f"{text.num_layers} blocks, {text.width} wide, {text.num_heads} heads"
    page.box(498, 62, 290, 92, "text", "text transformer", (blocks, "padding is seen, each place its own vector"), "models/text.py")
    page.arrow((788, 92), (846, 92))
    page.box(848, 52, 348, 50, "text", f"sequence, {text.width} × {text.context_length}", ("every attention block attends to it",))
    page.arrow((788, 126), (846, 126))
    page.box(
        848, 110, 348, 50, "text", f"last position, {4 * MODELS['base'].config.model_channels}", ("is added to the embedding of the time",)
    )


def unet(page: Drawing) -> None:
    config = MODELS["base"].config
    with torch.device("meta"):
        size = millions(MODELS["base"].build())
    top = 188
    page.panel(24, top, 1192, 394, "net", f"The network: eps and variance of xₜ   (base, {config.image_size_px} px, {size} with its text)")
    page.file(1198, top + 27, "models/unet.py", anchor="end")
    widths = [mult * config.model_channels for mult in config.channel_mult]
    sizes = [config.image_size_px // 2**level for level in range(len(widths))]
    first, step, height = top + 50, 70, 54
    for level, (channels, side) in enumerate(zip(widths, sizes, strict=True)):
        y, inset = first + step * level, 44 * level
        down, up = 210 + inset, 1030 - 236 - inset
        for x, blocks in ((down, config.num_res_blocks), (up, config.num_res_blocks + 1)):
            what = f"{blocks} × (residual + attention)" if side in config.attention_sizes_px else f"{blocks} × residual block"
            page.box(x, y, 236, height, "net", f"{side} px · {channels} channels", (what,))
        if level:
            page.arrow((down + 34, y - step + height), (down + 34, y))
            page.arrow((up + 202, y), (up + 202, y - step + height))
        page.arrow((down + 236, y + height / 2), (up - 2, y + height / 2), dashed=True)
    last = first + step * (len(widths) - 1)
    page.text(620, first + 18, "put beside what comes up", size=11.5, colour=SOFT, anchor="middle")
    y = last + height + 37
    page.arrow((470, last + height), (470, y), (528, y))
    page.box(530, y - 24, 180, 48, "net", "middle", ("residual, attention, residual",))
    page.arrow((710, y), (770, y), (770, last + height + 2))

    page.box(44, first, 134, height, "net", "xₜ", (f"3 × {sizes[0]} × {sizes[0]}",))
    page.arrow((178, first + height / 2), (208, first + height / 2))
    page.box(1062, first, 134, height, "net", "eps, variance", (f"3 + 3 × {sizes[0]} × {sizes[0]}",))
    page.arrow((1030, first + height / 2), (1060, first + height / 2))

    page.text(46, first + 84, "beside xₜ:", size=12.5, style='font-weight="600"')
    for offset, line in (
        (103, "inpainting: the known"),
        (120, "image (3), its mask (1)"),
        (144, "upsampler: the small"),
        (161, "image, enlarged (3)"),
    ):
        page.text(46, first + offset, line, size=12, colour=SOFT)
    page.box(44, y - 30, 216, 64, "net", "timestep t", ("sines, two layers, + the caption:", f"{4 * config.model_channels} numbers"))
    page.text(270, y - 3, "a scale and a shift in", size=12, colour=SOFT)
    page.text(270, y + 14, "every residual block", size=12, colour=SOFT)
    page.box(
        920,
        y - 30,
        276,
        64,
        "net",
        "attention",
        ("each image position to all others and to", f"the caption, in one softmax; heads of {config.head_channels}"),
    )
    page.arrow((1196, 77), (1207, 77), (1207, y), (1198, y), hue="text")
    page.arrow((940, 160), (940, 179), (34, 179), (34, y), (42, y), hue="text")


def process(page: Drawing) -> None:
    top, y = 600, 692
    page.panel(24, top, 742, 218, "step", "One step back, some 100 times")
    page.box(44, top + 50, 196, 92, "step", "guidance", ("eps∅ + s · (eps − eps∅)", "∅: the empty caption"), "models/guidance.py")
    page.arrow((240, y), (268, y))
    page.box(
        270, top + 50, 236, 92, "step", "predicted image: x₀", ("(xₜ − √(1 − ᾱ) · eps) / √ᾱ,", "cut to [−1, 1]"), "models/diffusion.py"
    )
    page.arrow((506, y), (534, y))
    page.box(536, top + 50, 210, 92, "step", "xₜ₋₁", ("mean + √variance · noise,", "or as the sampler has it"), "models/solvers.py")
    page.arrow((34, top - 18), (34, y), (42, y))
    page.text(650, top + 30, "and again, until t = 0", size=12, colour=SOFT, anchor="end")
    page.arrow((660, top + 50), (660, top - 16))
    page.text(44, top - 4, "eps, variance", size=11.5, colour=SOFT)
    page.text(670, top - 4, "xₜ₋₁", size=11.5, colour=SOFT)
    for number, (words, file) in enumerate(
        (
            ("which sampler: DDPM, DDIM, PLMS, DPM-Solver++", "models/samplers.py"),
            ("which steps: 100, ddim50, fast27", "models/respacing.py"),
            ("fill in a region, start from an image", "models/editing.py"),
        )
    ):
        page.text(44, top + 166 + 19 * number, words, size=12.5)
        page.file(746, top + 166 + 19 * number, file, anchor="end")


def noised_clip(page: Drawing) -> None:
    spec = MODELS["noised-clip"]
    with torch.device("meta"):
        clip = spec.build()
    top, config = 600, spec.config
    page.panel(782, top, 434, 218, "clip", "Noised CLIP: guidance by a second model")
    page.file(1198, top + 202, "models/noised_clip.py", anchor="end")
    tower = f"{config.image_layers} blocks, {config.image_width} wide, {millions(clip.image)}"
    page.box(800, top + 50, 222, 70, "clip", "image tower: xₜ and t", (tower, f"patches of {config.patch_size_px} px; t is a token"))
    tower = f"{config.text_layers} blocks, {config.text_width} wide, {millions(clip.text)}"
    page.box(800, top + 130, 222, 70, "clip", "text tower: the caption", (tower,), "models/tokenizers.py")
    page.box(1064, top + 80, 134, 84, "clip", "z image · z text", ("its gradient in xₜ", "moves the mean"))
    page.arrow((1022, top + 85), (1042, top + 85), (1042, top + 108), (1062, top + 108))
    page.arrow((1022, top + 165), (1042, top + 165), (1042, top + 138), (1062, top + 138))
    page.arrow((1131, top + 80), (1131, top + 42), (774, top + 42), (774, top + 76), (748, top + 76), dashed=True)


def upsampler(page: Drawing) -> None:
    spec = MODELS["upsampler"]
    config, top = spec.config, 836
    with torch.device("meta"):
        size = millions(spec.build())
    page.panel(24, top, 1192, 140, "net", f"The upsampler: 64 to {config.image_size_px} px   ({size})")
    page.box(44, top + 44, 170, 80, "net", "the sample", ("3 × 64 × 64", "in 8 bits"))
    page.arrow((214, top + 84), (244, top + 84))
    page.box(246, top + 44, 200, 80, "net", f"enlarged, {config.enlarge}", ("stands beside xₜ",), "models/unet.py")
    page.arrow((446, top + 84), (476, top + 84))
    channels = ", ".join(str(mult * config.model_channels) for mult in config.channel_mult)
    page.box(
        478,
        top + 44,
        310,
        80,
        "net",
        "the same network, six levels",
        (f"{channels} channels;", "it has a text transformer of its own"),
        "models/catalog.py",
    )
    page.arrow((788, top + 84), (818, top + 84))
    page.box(
        820,
        top + 44,
        206,
        80,
        "net",
        "27 steps, linear schedule",
        (f"noise × {spec.initial_noise_scale}, no guidance",),
        "models/cascade.py",
    )
    page.arrow((1026, top + 84), (1056, top + 84))
    page.box(1058, top + 44, 140, 80, "net", "the image", (f"3 × {config.image_size_px} × {config.image_size_px}",))


def training(page: Drawing) -> None:
    top = 994
    page.panel(24, top, 1192, 136, "train", "Training: which noise was put in?")
    for number, (title, lines, file) in enumerate(
        (
            ("which t", ("uniform, or where", "the loss is large"), "timestep_sampling.py"),
            ("what is shown", ("xₜ, captions (some empty),", "what stands beside xₜ"), "batch_loss.py"),
            ("what is erased", ("boxes, strokes, everything", "(inpainting)"), "regions.py"),
            ("the loss", ("squared error + bound,", "or contrastive"), "objectives.py"),
            ("the step", ("AdamW, average of weights,", "checkpoints"), "training.py"),
            ("the stages", ("settings of each; inpainting", "starts from the base"), "recipes.py"),
        )
    ):
        page.box(44 + 193.5 * number, top + 42, 184, 80, "train", title, lines, f"models/{file}")


if __name__ == "__main__":
    OUT.write_text(draw(), encoding="utf-8")
