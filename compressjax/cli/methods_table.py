"""``compressjax methods``: the catalogue as a table."""

import dataclasses

from rich.table import Table
from rich.text import Text

from compressjax.catalogue import FAMILIES, METHODS
from compressjax.cli import methods
from compressjax.cli.arguments import Methods
from compressjax.cli.screen import Screen


def run(args: Methods, screen: Screen) -> None:
    """Prints every system with its state."""
    table = Table(title=f"{len(METHODS)} systems", title_justify="left", header_style="bold")
    for column in ("Family", "Method", "What it does", "arXiv", "State", "--method"):
        table.add_column(column, overflow="fold")
    last = None
    for entry in METHODS:
        if entry.family != last:
            table.add_section()
        family, last = ("" if entry.family == last else entry.family), entry.family
        flag = entry.slug if entry.slug in methods.METHODS else ""
        style = {"done": "green", "built": "yellow", "planned": "dim"}[entry.state]
        table.add_row(family, entry.name, entry.about, entry.paper, Text(entry.state, style), flag)
    screen.show(table)
    screen.finish(
        {
            "command": "methods",
            "families": dict(FAMILIES),
            "methods": [dataclasses.asdict(entry) for entry in METHODS],
            "cli": list(methods.METHODS),
        }
    )
