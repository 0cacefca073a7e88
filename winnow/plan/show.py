"""A plan for people: a table of stages on the terminal, and under it every number with its formula and where its inputs are from."""

from rich.console import Console
from rich.table import Table

from winnow.plan.ledger import Ledger
from winnow.plan.plan import Plan

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def rounded(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 1e9:
        return f"{value:.3g}"
    text = f"{float(f'{value:.3g}'):,.10f}".rstrip("0").rstrip(".")
    return text if abs(value) >= 1e-4 else f"{value:.2e}"


def hours(value: float) -> str:
    """Hours in the unit that people would say."""
    if value < 1 / 60:
        return f"{rounded(value * 3600)} s"
    if value < 2:
        return f"{rounded(value * 60)} min"
    return f"{rounded(value)} h" if value < 72 else f"{rounded(value / 24)} days"


def scaled(value: float, unit: str = "B") -> str:
    """Bytes and other large numbers with a decimal prefix."""
    for size, prefix in UNITS:
        if value >= size:
            return f"{rounded(value / size)} {prefix}{unit}"
    return f"{rounded(value)} {unit}"


def show(plan: Plan, console: Console) -> None:
    """Prints the plan."""
    ledger = plan.ledger
    table = Table(title=f"{rounded(ledger['listed'])} listed, {rounded(ledger['downloaded'])} images, {rounded(ledger['kept'])} kept")
    for heading in ("stage", "nodes", "time", "CPU hours", "GPU hours", "written", plan.currency, "limited by"):
        table.add_column(heading, justify="left" if heading in ("stage", "nodes", "limited by") else "right", overflow="fold")
    for row in plan.rows:
        table.add_row(
            row.stage,
            row.kind,
            hours(ledger[row.hours]),
            _cell(ledger, row.cpu_hours),
            _cell(ledger, row.gpu_hours),
            scaled(ledger[row.written]) if row.written else "",
            rounded(ledger[row.cost]),
            row.limit,
        )
    table.add_section()
    table.add_row(
        "one after the other",
        "",
        hours(ledger["total_hours"]),
        rounded(ledger["total_cpu_hours"]),
        rounded(ledger["total_gpu_hours"]),
        scaled(ledger["total_bytes"]),
        rounded(ledger["total_cost"]),
        f"storage: {rounded(ledger['total_storage_cost_per_month'])} a month",
    )
    console.print(table)
    _show_ledger(ledger, console)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)


def _cell(ledger: Ledger, name: str | None) -> str:
    return rounded(ledger[name]) if name is not None else ""


def _show_ledger(ledger: Ledger, console: Console) -> None:
    console.print("\nGiven:")
    width = max(map(len, ledger.given))
    for name, entry in ledger.given.items():
        value = f"{entry.value:,.10g}" if abs(entry.value) >= 1 else f"{entry.value:.4g}"  # as it was given: 2048 is not 2,050
        console.print(f"  {name:<{width}}  {value} {entry.unit}  [{entry.origin}]", markup=False, highlight=False)
    console.print("\nComputed:")
    for name, line in ledger.lines.items():
        console.print(f"  {name} = {line.formula} = {rounded(line.value)} {line.unit}", markup=False, highlight=False)
