"""How things are shown, the same everywhere: names, and the colours and shapes of charts."""

from __future__ import annotations

from typing import Any

from pipeline.settings.profile import Grid

# Okabe and Ito's colours, which people with any colour vision can tell apart; shapes help too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
GREY, INK = "#6b7280", "#24292f"
DPI = 160
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c5c9d0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "svg.hashsalt": "concept-bench",
    "svg.fonttype": "path",
}


def words(name: str) -> str:
    """A name in `datasets/` or of a method as words: "custom_diffusion" as "custom diffusion"."""
    return name.replace("_", " ").replace("+", " + ")


def method_style(grid: Grid, method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in all charts of a profile.

    What is not in the grid, as the oracle, is grey.
    """
    if method not in grid.all_methods():
        return GREY, MARKERS[0]
    number = grid.all_methods().index(method)
    # The next round of colours has other markers.
    marker = (number + number // len(COLOURS)) % len(MARKERS)
    return COLOURS[number % len(COLOURS)], MARKERS[marker]
