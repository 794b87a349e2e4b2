"""The singular values of the changes of keys and values (paper, appendix C, Fig. 14).

Few of them are large: that is why changes can be compressed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from eval.analyses.common import adapter_of, folder_of, made, write_results
from eval.analyses.spectra import Parameters
from eval.style import COLOURS, STYLE
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.exchange.compression import spectra
from pipeline.settings.profile import load_params

KINDS = {".to_k.weight": "keys", ".to_v.weight": "values"}


def normalised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values over the largest, and their running sums over the sum: each [r].

    Args:
        values: [r], descending. Where all are zero so is the result.
    """
    total = values.sum()
    if total == 0:
        return values, values
    return values / values[0], values.cumsum(0) / total


def kind_of(name: str) -> str:
    """Whether a matrix makes keys, values or something else, by its name."""
    return next((kind for end, kind in KINDS.items() if name.endswith(end)), "other")


def analyse_spectra(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `spectra.csv`, a row for each singular value, and a chart.

    Raises:
        BenchError: the profile does not run it, or an adapter is missing or changes no matrix.
    """
    params = load_params(profile)
    about = Parameters.of(params)
    parts = []
    for concept, adapter in made(about.concepts, partial(adapter_of, params, about.method)):
        for name, values in spectra(adapter).items():
            relative, cumulative = normalised(values)
            parts.append(
                pd.DataFrame(
                    {
                        "method": about.method,
                        "subject": concept,
                        "matrix": name,
                        "kind": kind_of(name),
                        "rank": range(1, len(values) + 1),
                        "value": values.numpy(),
                        "relative": relative.numpy(),
                        "cumulative": cumulative.numpy(),
                    }
                )
            )
    if not parts:
        raise BenchError(f"params.yaml: analyses.spectra: {about.method} changes no matrix")
    table = pd.concat(parts, ignore_index=True)
    needed = table[table["cumulative"] <= 0.6].groupby(["subject", "matrix"])["rank"].max()
    matrices = table.groupby(["subject", "matrix"])["rank"].max()
    share = (needed.reindex(matrices.index, fill_value=0) / matrices).mean()
    print(f"spectra: 60 % of the sum are {share:.0%} of the singular values of {len(matrices)}")
    folder = folder_of(params, "spectra")
    return write_results(folder, {"spectra": table}, {"spectra": chart(table)})


def chart(table: pd.DataFrame) -> Figure:
    """A line for each matrix: its singular values, and their running sums."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        axes = figure.subplots(1, 2)
        kinds = list(dict.fromkeys(table["kind"]))
        for (_, kind, _), part in table.groupby(["subject", "kind", "matrix"], sort=False):
            for ax, column in zip(axes, ("relative", "cumulative")):
                colour = COLOURS[kinds.index(str(kind))]
                ax.plot(part["rank"], part[column], color=colour, alpha=0.5, lw=0.9)
        for place, kind in enumerate(kinds):
            axes[0].plot([], [], color=COLOURS[place], label=kind)
        axes[0].legend(frameon=False)
        axes[0].set(xlabel="singular value", ylabel="over the largest", title="Singular values")
        axes[1].axhline(0.6, color="#8a8f98", lw=1, ls="--")
        axes[1].set(xlabel="singular values kept", ylabel="share of the sum", title="Running sums")
    return figure
