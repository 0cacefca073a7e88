"""Charts as inline SVG, drawn by hand: styled by the page (light, dark, print), readable without colour, same numbers same bytes.

Every chart has a title and a description for screen readers; the numbers themselves stand in tables beside them.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH = 720


def _svg(height: float, title: str, description: str, body: list[str], *, width: float = WIDTH) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}. {escape(description)}" '
        f'preserveAspectRatio="xMidYMid meet">' + "".join(body) + "</svg>"
    )


def _text(x: float, y: float, content: str, kind: str = "tick", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _bar(x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{max(height, 0):.2f}" class="{kind}">{title}</rect>'


def number(value: float) -> str:
    """A tick label: few digits, no exponent for everyday sizes."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values between low and high."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def funnel(rows: Sequence[tuple[str, int, str]], total: int) -> Markup:
    """Stages as bars of falling length, centred at the left. `rows`: label, count, what was lost on the way to here."""
    height, gap, left, right = 34, 26, 118, 92
    room = WIDTH - left - right
    body = []
    for index, (label, count, lost) in enumerate(rows):
        y = 4 + index * (height + gap)
        width = room * count / max(total, 1)
        if index:
            body.append(_text(left + 2, y - 8, lost, "note"))
        body.append(_text(left - 12, y + height / 2 + 4.5, label, "label", "end"))
        body.append(_bar(left, y, room, height, "track"))
        body.append(_bar(left, y, width, height, "fill kept" if index == len(rows) - 1 else "fill step", f"{label}: {count:,}"))
        body.append(_text(WIDTH - right + 12, y + height / 2 + 1, f"{count:,}", "value"))
        body.append(_text(WIDTH - right + 12, y + height / 2 + 15, f"{100 * count / max(total, 1):.1f} %", "tick"))
    description = "; ".join(f"{label} {count:,}" for label, count, _ in rows)
    return _svg(len(rows) * (height + gap) - gap + 8, "From listed pairs to kept pairs", description, body)


def scores(entry: dict[str, object]) -> Markup:
    """Two panels over one axis: scores of all judged images (logarithmic counts), and of labelled images never fitted on."""
    edges: list[float] = entry["edges"]  # type: ignore[assignment]
    threshold = float(entry["threshold"])  # type: ignore[arg-type]
    left, right, top, panel, gap = 52, 14, 44, 128, 32
    low, high = edges[0], edges[-1]

    def x_of(value: float) -> float:
        return left + (WIDTH - left - right) * (value - low) / max(high - low, 1e-12)

    body: list[str] = []
    everything: list[int] = entry["histogram"]  # type: ignore[assignment]
    base = top + panel
    peak = math.log10(max(everything, default=0) + 1) or 1.0
    for power in range(0, math.ceil(peak) + 1):
        y = base - panel * math.log10(10**power + 1) / peak if power else base - panel * math.log10(2) / peak
        if y >= top - 1:
            body += [_line(left, y, WIDTH - right, y, "grid"), _text(left - 8, y + 4, f"{10**power:,}", "tick", "end")]
    for index, count in enumerate(everything):
        if count:
            height = panel * math.log10(count + 1) / peak
            kind = "fill dropped" if _middle(edges, index) >= threshold else "fill kept"
            tip = f"{count:,} images with scores {edges[index]:.3f} to {edges[index + 1]:.3f}"
            body.append(_bar(x_of(edges[index]) + 0.5, base - height, x_of(edges[index + 1]) - x_of(edges[index]) - 1, height, kind, tip))
    body += [
        _line(left, base, WIDTH - right, base, "axis"),
        _text(left, 12, "All judged images (each gridline is ten times the one below)", "note"),
    ]

    positive: list[int] = entry["labelled_positive"]  # type: ignore[assignment]
    negative: list[int] = entry["labelled_negative"]  # type: ignore[assignment]
    second = base + gap
    base_2 = second + 92
    highest = max([*positive, *negative, 1])
    for kind, counts, word in (("fill negative", negative, "clean"), ("fill positive", positive, "to be dropped")):
        for index, count in enumerate(counts):
            if count:
                height = (base_2 - second - 6) * count / highest
                tip = f"{count:,} labelled {word}, scores {edges[index]:.3f} to {edges[index + 1]:.3f}"
                body.append(
                    _bar(x_of(edges[index]) + 0.5, base_2 - height, x_of(edges[index + 1]) - x_of(edges[index]) - 1, height, kind, tip)
                )
    body += [_line(left, base_2, WIDTH - right, base_2, "axis"), _text(left - 8, second + 10, f"{highest:,}", "tick", "end")]
    x = x_of(threshold)
    anchor = "end" if x > WIDTH * 0.6 else "start"
    body += [
        _line(x, top - 20, x, base_2, "threshold"),
        _text(x + (-6 if anchor == "end" else 6), top - 12, f"threshold {threshold:.3f}", "mark", anchor),
        _text(left, second - 6, "Labelled images the filter was not fitted on", "note"),  # over the line of the threshold
    ]
    for value in ticks(low, high, 7):
        body += [
            _line(x_of(value), base_2, x_of(value), base_2 + 4, "axis"),
            _text(x_of(value), base_2 + 17, number(value), "tick", "middle"),
        ]
    body.append(
        _text((left + WIDTH - right) / 2, base_2 + 34, "score: the higher, the more the filter sees what it looks for", "tick", "middle")
    )
    kept = sum(count for index, count in enumerate(everything) if _middle(edges, index) < threshold)
    description = f"Threshold {threshold:.4g}; {kept:,} images score below it and {sum(everything) - kept:,} at or above it"
    return _svg(base_2 + 40, f"Scores of the {entry['title']} filter", description, body)


def _middle(edges: Sequence[float], index: int) -> float:
    """Of a bar. One edge is the threshold but for rounding, so a bar's middle tells its side."""
    return (edges[index] + edges[index + 1]) / 2


def curve(points: Sequence[Sequence[float]], title: str) -> Markup:
    """A training curve: every logged loss faint, a running mean over it."""
    width, left, right, top, height = 720.0, 56, 14, 10, 190
    base = top + height
    steps, losses = [point[0] for point in points], [point[1] for point in points]
    low, high = min(losses), max(losses)
    low, high = (max(0.0, low - 0.06 * (high - low)), high + 0.04 * (high - low)) if high > low else (low - 0.5, high + 0.5)

    def at(step: float, loss: float) -> str:
        x = left + (width - left - right) * (step - steps[0]) / max(steps[-1] - steps[0], 1)
        return f"{x:.1f},{base - height * (loss - low) / (high - low):.1f}"

    body = []
    for value in ticks(low, high, 4):
        y = base - height * (value - low) / (high - low)
        body += [_line(left, y, width - right, y, "grid"), _text(left - 8, y + 4, number(value), "tick", "end")]
    reach = len(losses) // 24
    around = [losses[max(0, index - reach) : index + reach + 1] for index in range(len(losses))]
    smooth = [sum(near) / len(near) for near in around]
    body.append(f'<polyline class="raw" points="{" ".join(at(*pair) for pair in zip(steps, losses, strict=True))}"/>')
    body.append(f'<polyline class="smooth" points="{" ".join(at(*pair) for pair in zip(steps, smooth, strict=True))}"/>')
    body.append(_line(left, base, width - right, base, "axis"))
    for value in ticks(steps[0], steps[-1], 6):
        x = left + (width - left - right) * (value - steps[0]) / max(steps[-1] - steps[0], 1)
        body.append(_text(x, base + 17, number(value), "tick", "middle"))
    body.append(_text((left + width - right) / 2, base + 34, "training step", "tick", "middle"))
    return _svg(
        base + 40, title, f"Loss from {losses[0]:.4g} at step {steps[0]:,} to {losses[-1]:.4g} at step {steps[-1]:,}", body, width=width
    )


def distances(near: dict[str, object]) -> Markup:
    """How far samples are from their own training image, and from the nearest kept one: two mirrored histograms."""
    edges: list[float] = near["edges"]  # type: ignore[assignment]
    own: list[int] = near["histogram_own"]  # type: ignore[assignment]
    nearest: list[int] = near["histogram_nearest"]  # type: ignore[assignment]
    left, right, half = 52, 14, 74
    middle, peak = 26 + half, max([*own, *nearest, 1])

    def x_of(value: float) -> float:
        return left + (WIDTH - left - right) * value / edges[-1]

    body = [
        _text(left, 16, "To its own training image", "note"),
        _text(left, middle + half + 18, "To the nearest of all kept images", "note"),
    ]
    for counts, sign, kind in ((own, -1, "fill kept"), (nearest, 1, "fill step")):
        for index, count in enumerate(counts):
            if count:
                height = half * count / peak
                y = middle - height if sign < 0 else middle
                tip = f"{count:,} samples at {edges[index]:.3f} to {edges[index + 1]:.3f}"
                body.append(_bar(x_of(edges[index]) + 0.5, y, x_of(edges[index + 1]) - x_of(edges[index]) - 1, height, kind, tip))
    body.append(_line(left, middle, WIDTH - right, middle, "axis"))
    bottom = middle + half + 28
    for value in ticks(0, edges[-1], 7):
        body.append(_text(x_of(value), bottom + 12, number(value), "tick", "middle"))
    body.append(_text((left + WIDTH - right) / 2, bottom + 30, "CLIP distance (0 = the same to CLIP)", "tick", "middle"))
    body += [_text(left - 8, middle - half + 8, f"{peak:,}", "tick", "end"), _text(left - 8, middle + 4, "0", "tick", "end")]
    description = (
        f"Own image: closest {near['closest_own']}, median {near['median_own']}; "
        f"any kept image: closest {near['closest_nearest']}, median {near['median_nearest']}"
    )
    return _svg(bottom + 36, "Distances between samples and training images", description, body)


def share_curve(points: Sequence[tuple[int, float, float, float]], title: str, unit: str) -> Markup:
    """A share with its interval by a count, on a logarithmic axis: (count, share, low, high), counts rising."""
    left, right, top, height = 64, 20, 12, 170
    base = top + height
    counts = [max(point[0], 1) for point in points]
    first, last = math.log(counts[0]), math.log(counts[-1])
    highest = max(max(point[3] for point in points), 1e-6) * 1.05

    def x_of(count: float) -> float:
        return left + 24 + (WIDTH - left - right - 48) * ((math.log(count) - first) / (last - first) if last > first else 0.5)

    def y_of(share: float) -> float:
        return base - height * share / highest

    body = []
    for value in ticks(0, highest, 4):
        body += [
            _line(left, y_of(value), WIDTH - right, y_of(value), "grid"),
            _text(left - 8, y_of(value) + 4, f"{100 * value:.3g} %", "tick", "end"),
        ]
    body.append(
        f'<polyline class="smooth" points="{" ".join(f"{x_of(c):.1f},{y_of(p[1]):.1f}" for c, p in zip(counts, points, strict=True))}"/>'
    )
    for count, (_, share, low, high) in zip(counts, points, strict=True):
        x = x_of(count)
        body += [_line(x, y_of(low), x, y_of(high), "whisker"), _line(x - 4, y_of(low), x + 4, y_of(low), "whisker")]
        body += [_line(x - 4, y_of(high), x + 4, y_of(high), "whisker")]
        tip = f"{count:,} labels: {share:.2%}, 95 % interval {low:.2%} to {high:.2%}"
        body.append(f'<circle cx="{x:.1f}" cy="{y_of(share):.1f}" r="4" class="point"><title>{escape(tip)}</title></circle>')
        body.append(_text(x, base + 17, f"{count:,}", "tick", "middle"))
    body += [_line(left, base, WIDTH - right, base, "axis"), _text((left + WIDTH - right) / 2, base + 36, unit, "tick", "middle")]
    words = "; ".join(f"{count:,}: {point[1]:.2%}" for count, point in zip(counts, points, strict=True))
    return _svg(base + 42, title, words, body)


SMALL = 150.0, 16.0
"""Width and height of a chart in a table's cell."""


def _small(words: str, body: list[str]) -> Markup:
    """A chart in a table's cell; its numbers show where the mouse rests, too."""
    return Markup(
        f'<svg class="whisker" viewBox="0 0 {SMALL[0]:g} {SMALL[1]:g}" role="img" aria-label="{escape(words)}">'
        f"<title>{escape(words)}</title>" + "".join(body) + "</svg>"
    )


def whisker(share: float | None, low: float, high: float, top: float, mark: float | None = None) -> Markup:
    """A share and its interval as a small bar for a table's cell; all of it ends at `top`.

    Args:
        mark: where all others together lie: a thin line.
    """
    width, _ = SMALL

    def x_of(value: float) -> float:
        return 2 + (width - 4) * min(value / top, 1) if top > 0 else 2

    body = [_bar(0, 6, width, 4, "track"), _bar(x_of(low), 6, x_of(high) - x_of(low), 4, "range")]
    if mark is not None:
        body.append(_line(x_of(mark), 1, x_of(mark), 15, "mean"))
    words = "no images"
    if share is not None:
        body.append(f'<circle cx="{x_of(share):.1f}" cy="8" r="4" class="point"/>')
        words = f"{share:.2%}, {low:.2%} to {high:.2%}"
    return _small(words, body)


def shift(change: float, low: float, high: float, way: str) -> Markup:
    """A relative change with its interval, for a table's cell: on a logarithmic axis from an eighth to eight times."""
    width, height = SMALL

    def x_of(value: float) -> float:
        return width / 2 + (width / 2 - 6) * max(-3.0, min(3.0, math.log2(max(value + 1, 1e-9)))) / 3

    body = [
        _line(width / 2, 0, width / 2, height, "mean"),
        _bar(x_of(low), 6, x_of(high) - x_of(low), 4, "range"),
        f'<circle cx="{x_of(change):.1f}" cy="8" r="4" class="point {way}"/>',
    ]
    words = f"changed by {change:+.0%}, between {low:+.0%} and {high:+.0%}"
    return _small(words, body)
