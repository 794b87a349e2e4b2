"""How small an adapter can be: scores and bytes by the share of singular values that it keeps.

Paper, appendix C, Fig. 21: 60 % of the sum of singular values make a fifth of the size and change
nothing that is seen; 1 % loses the concept.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from eval.analyses.common import (
    ALIGNMENTS,
    Judge,
    adapter_of,
    adapter_scores,
    folder_of,
    made,
    summary,
    write_results,
)
from eval.analyses.compression import Parameters
from eval.metrics.catalogue import METRICS
from eval.style import COLOURS, STYLE
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.concepts.concept import load_subject
from pipeline.exchange.compression import compress
from pipeline.models.adapter import Adapter, save_adapter
from pipeline.models.base import load_base
from pipeline.settings.profile import load_params


def saved_bytes(adapter: Adapter) -> int:
    """The size of the adapter's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(adapter, path)
        return path.stat().st_size


def analyse_compression(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `prompts.csv` (each prompt's mean scores), `compression.csv` and a chart.

    Raises:
        BenchError: the profile does not run it, or an adapter is missing.
    """
    params = load_params(profile)
    about = Parameters.of(params)
    whole = dict(made(about.concepts, partial(adapter_of, params, about.method)))
    base, judge = load_base(params.base), Judge(params)
    parts, sizes = [], []
    for concept, adapter in whole.items():
        subject = load_subject(concept, profile)
        for share in about.shares:
            small = compress(adapter, share)
            scores = adapter_scores(judge, base, small, subject, about.images_per_prompt)
            parts.append(scores.assign(method=about.method, share=share))
            size = {"bytes": saved_bytes(small), "parameters": small.parameters()}
            sizes.append({"share": share, **size})
    found = pd.concat(parts, ignore_index=True)
    mean_sizes = pd.DataFrame(sizes).groupby("share", sort=False).mean().reset_index()
    table = mean_sizes.merge(summary(found, ["method"], "share"), on="share")
    for row in table.to_dict("records"):
        print(
            f"compression: {row['share']:>5.0%}: {row['bytes'] / 1e6:.3f} MB, "
            f"text-alignment {row['text_alignment']:.3f}, "
            f"image-alignment {row['image_alignment']:.3f}"
        )
    return write_results(
        folder_of(params, "compression"),
        {"prompts": found, "compression": table},
        {"compression": chart(table)},
    )


def chart(table: pd.DataFrame) -> Figure:
    """Each metric by the size of the adapter's file, with one standard error."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        for ax, metric, colour in zip(figure.subplots(1, 2), ALIGNMENTS, COLOURS):
            megabytes = table["bytes"] / 1e6
            ax.errorbar(
                megabytes, table[metric], table[f"{metric}_se"], color=colour, marker="o", capsize=3
            )
            for x, y, share in zip(megabytes, table[metric], table["share"]):
                ax.annotate(f"{share:.0%}", (x, y), (5, 5), textcoords="offset points", fontsize=8)
            ax.set(xscale="log", xlabel="size of the adapter, MB", title=METRICS[metric].heading)
    return figure
