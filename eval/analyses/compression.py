"""How small an adapter can be: scores and bytes by the share of singular values that it keeps.

Paper, appendix C, Fig. 21: 60 % of the sum of singular values make a fifth of the size and change
nothing that is seen; 1 % loses the concept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from eval.analyses.common import (
    Judge,
    adapter_of,
    folder_of,
    requests_of,
    section,
    write_results,
)
from eval.analyses.params import CompressionParams
from eval.figures import COLOURS, STYLE
from eval.statistics import clustered_mean, mean_over
from eval.tables import METRICS
from pipeline.adapters import Adapter, applied, save_adapter
from pipeline.base import load_base
from pipeline.compression import compress
from pipeline.concepts import load_subject
from pipeline.params import DEFAULT_PROFILE, load_params
from pipeline.sampling import sample_all

ALIGNMENTS = ("text_alignment", "image_alignment")


def saved_bytes(adapter: Adapter) -> int:
    """The size of the adapter's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(adapter, path)
        return path.stat().st_size


def summary(prompts: pd.DataFrame, by: Sequence[str], step: str) -> pd.DataFrame:
    """Means over subjects with their errors; those over prompts where there is one subject.

    Args:
        prompts: columns subject, metric, prompt_index, value, those of `by` and that of `step`.
        by: columns that tell lines of a chart apart, such as the method.
        step: the column along which a line runs.

    Returns:
        A row for each of `by` and `step`: text_alignment, text_alignment_se and so on.
    """
    rows = []
    for key, part in prompts.groupby([*by, step], sort=False):
        row = dict(zip([*by, step], key))
        for metric in ALIGNMENTS:
            values = part[part["metric"] == metric]
            means = values.groupby("subject")["value"].mean()
            mean = (
                mean_over(means)
                if len(means) > 1
                else clustered_mean(values["value"], values["prompt_index"])
            )
            row |= {metric: mean.mean, f"{metric}_se": mean.std_error}
        rows.append(row)
    return pd.DataFrame(rows)


def analyse_compression(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `prompts.csv` (each prompt's mean scores), `compression.csv` and a chart.

    Raises:
        BenchError: the profile does not run it, or an adapter is missing.
    """
    params = load_params(profile)
    about = section(params, "compression", CompressionParams)
    whole = {concept: adapter_of(params, about.method, concept) for concept in about.concepts}
    base, judge = load_base(params.base), Judge(params)
    parts, sizes = [], []
    for concept, adapter in whole.items():
        subject = load_subject(concept, profile)
        references = adapter.provenance.references
        requests = requests_of(params, subject, references, about.images_per_prompt)
        for share in about.shares:
            small = compress(adapter, share)
            with applied(base, small):
                images = sample_all(base, requests, params.sample)
            prompts = [str(request.record["scored_prompt"]) for request in requests]
            frame = pd.DataFrame(
                {
                    "method": about.method,
                    "subject": concept,
                    "share": share,
                    "prompt_index": [request.record["prompt_index"] for request in requests],
                    "text_alignment": judge.text_alignment(images, prompts),
                    "image_alignment": judge.image_alignment(images, concept),
                }
            )
            parts.append(by_prompt(frame))
            sizes.append(
                {
                    "share": share,
                    "bytes": saved_bytes(small),
                    "parameters": small.parameters(),
                }
            )
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


def by_prompt(images: pd.DataFrame) -> pd.DataFrame:
    """Scores of images, a column each, as rows of the mean of each prompt and metric."""
    known = [name for name in images.columns if name not in ALIGNMENTS]
    long = images.melt(known, list(ALIGNMENTS), "metric", "value")
    return long.groupby([*known, "metric"], sort=False)["value"].mean().reset_index()


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
            ax.set(
                xscale="log", xlabel="size of the adapter, MB", title=f"{METRICS[metric].title} →"
            )
    return figure
