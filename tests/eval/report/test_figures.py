"""Charts: what they draw is what was scored."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from matplotlib.patches import Ellipse

from eval.report.figures import bars, scatter, write_figures
from eval.results import load_results
from eval.style import COLOURS, method_style


def test_points_are_means_and_ellipses_their_errors(profile: Path) -> None:
    results = load_results()
    figure = scatter(results, "single")
    assert figure is not None
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"pretrained", "custom diffusion"}
    ellipses = {tuple(patch.center): patch for patch in ax.patches if isinstance(patch, Ellipse)}
    for method, label in (("pretrained", "pretrained"), ("custom_diffusion", "custom diffusion")):
        x = results.mean(method, "single", "text_alignment")
        y = results.mean(method, "single", "image_alignment")
        assert x is not None
        assert y is not None
        ((at, of),) = zip(*lines[label].get_data())
        assert (at, of) == pytest.approx((x.mean, y.mean))
        shown = ellipses[x.mean, y.mean]
        assert (shown.width, shown.height) == pytest.approx((2 * x.std_error, 2 * y.std_error))


def test_bars_are_as_long_as_the_means(profile: Path) -> None:
    results = load_results()
    figure = bars(results, "kid")
    assert figure is not None
    (ax,) = figure.axes
    widths = [patch.get_width() for patch in ax.patches]
    means = [results.mean(m, "single", "kid") for m in ("oracle", "pretrained", "custom_diffusion")]
    assert widths == pytest.approx([mean.mean for mean in means if mean])


def test_styles_tell_fifteen_methods_apart(profile: Path) -> None:
    grid = load_results().grid.model_copy(update={"rows": [f"m{i}" for i in range(15)]})
    styles = [method_style(grid, method) for method in grid.methods]
    assert len(set(styles)) == 15
    assert {colour for colour, _ in styles} == set(COLOURS)


def test_charts_are_the_same_bytes_again(profile: Path, tmp_path: Path) -> None:
    results = load_results()
    names = ["scatter_single.svg", "scatter_compositions.svg", "kid.svg"]
    first, second = (write_figures(results, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == names
    for a, b in zip(first, second):
        assert a.read_bytes() == b.read_bytes()
        assert ET.parse(a).getroot().tag.endswith("svg")


def test_a_mean_over_fewer_subjects_says_so(profile: Path) -> None:
    Path("runs/toyland/cells/pretrained/chair/scores.csv").unlink()
    figure = scatter(load_results(), "single")
    assert figure is not None
    labels = {line.get_label() for line in figure.axes[0].lines}
    assert {"pretrained (1 of 2 subjects)", "custom diffusion"} <= labels
