"""How much each weight of the UNet changes when all are trained (paper, section 3.1, Fig. 3).

Why the paper trains the keys and values of cross-attention alone: their relative change is largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from eval.analyses.common import adapter_of, folder_of, made, write_results
from eval.analyses.weights import Parameters
from eval.style import COLOURS, STYLE, words
from pipeline.common.errors import BenchError
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.models.adapter import Delta, dense
from pipeline.models.base import load_base
from pipeline.settings.profile import load_grid, load_params, profile_folder

GROUPS = ("cross-attention", "self-attention", "other")


def group_of(name: str) -> str:
    """The group of layers that a parameter of a diffusers UNet belongs to, by its name."""
    parts = name.split(".")
    return GROUPS[0] if "attn2" in parts else GROUPS[1] if "attn1" in parts else GROUPS[2]


def relative_changes(
    weights: Mapping[str, Tensor], deltas: Mapping[str, Delta]
) -> dict[str, float]:
    """The Frobenius norm of each change over that of its weight, in float64.

    Args:
        weights: before training, by name; of any shapes.
        deltas: their changes. Those of weights that are all zero are left out.
    """
    changes = {}
    for name, delta in deltas.items():
        norm = torch.linalg.vector_norm(weights[name].double())
        if norm > 0:
            change = torch.linalg.vector_norm(dense(delta).to(weights[name].device).double())
            changes[name] = float(change / norm)
    return changes


def by_group(tensors: pd.DataFrame) -> pd.DataFrame:
    """The mean, the median and the mean weighted by size of each group's changes.

    Args:
        tensors: columns method, subject, group, change and parameters.

    Returns:
        Columns method, subject, group, tensors, mean, median and weighted_mean.
    """
    rows = []
    for (method, subject, group), part in tensors.groupby(["method", "subject", "group"]):
        change, sizes = part["change"].to_numpy(), part["parameters"].to_numpy()
        rows.append(
            {
                "method": method,
                "subject": subject,
                "group": group,
                "tensors": len(part),
                "mean": change.mean(),
                "median": np.median(change),
                "weighted_mean": np.average(change, weights=sizes),
            }
        )
    return pd.DataFrame(rows)


def analyse_weights(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `tensors.csv`, `groups.csv` and a chart of both.

    Raises:
        BenchError: the profile does not run it, an adapter is missing, or none changes a weight.
    """
    params = load_params(profile)
    about = Parameters.of(params)
    weights = dict(load_base(params.base, torch.device("cpu")).unet.named_parameters())
    rows = []
    cells = product(about.methods, about.concepts or load_grid(profile).concepts)
    for (method, concept), adapter in made(cells, lambda cell: adapter_of(params, *cell)):
        rows += [
            {
                "method": method,
                "subject": concept,
                "tensor": name,
                "group": group_of(name),
                "parameters": weights[name].numel(),
                "change": change,
            }
            for name, change in relative_changes(weights, adapter.deltas).items()
        ]
    if not rows:
        raise BenchError(
            f"{profile_folder(profile) / 'params.yaml'}: analyses.weights: "
            f"{', '.join(about.methods)} change no weight: name methods that do"
        )
    tensors = pd.DataFrame(rows)
    groups = by_group(tensors)
    means = groups.groupby(["method", "group"], sort=False)["mean"].mean().reset_index()
    for row in means.to_dict("records"):
        print(f"weights: {row['method']}, {row['group']}: changes by {row['mean']:.4f} of its norm")
    tables = {"tensors": tensors, "groups": groups}
    return write_results(folder_of(params, "weights"), tables, {"weights": chart(tensors, groups)})


def chart(tensors: pd.DataFrame, groups: pd.DataFrame) -> Figure:
    """The change of each tensor as a dot, and the groups' means as bars, a panel each method."""
    methods = list(dict.fromkeys(tensors["method"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(methods), 3.6), layout="constrained")
        axes = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
        for ax, method in zip(axes, methods):
            for place, group in enumerate(GROUPS):
                dots, means = (
                    frame.loc[(frame["method"] == method) & (frame["group"] == group), column]
                    for frame, column in ((tensors, "change"), (groups, "mean"))
                )
                spread = place + 0.3 * np.sin(np.arange(len(dots)) * 2.4)  # so that dots are seen
                ax.plot(spread, dots, ".", color=COLOURS[place], alpha=0.3, ms=4, mew=0)
                if len(means):
                    ax.bar(place, means.mean(), 0.75, color=COLOURS[place], alpha=0.35)
            ax.set_xticks(range(len(GROUPS)), GROUPS)
            ax.set(title=words(method))
        axes[0].set_ylabel("relative change ‖ΔW‖ / ‖W‖")
    return figure
