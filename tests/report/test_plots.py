"""Figures show what they are given and survive what real runs contain."""

import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from speechbrain_ssl.evaluation import metrics  # noqa: E402
from speechbrain_ssl.report import plots  # noqa: E402


def scored_trials(trials=20000, shift=2.0, seed=0):
    rng = np.random.default_rng(seed)
    targets = np.arange(trials) % 2 == 0
    return targets, rng.normal(size=trials) + shift * targets


def det_curve(targets, scores):
    points = metrics.error_rates(scores, targets)
    return points.false_alarm, points.miss


def speakers(count, files, dim=16, noise=0.05, seed=0):
    """Clustered embeddings, ids, and one chain of target trials each."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(count, dim)).repeat(files, axis=0)
    matrix = centers + noise * rng.normal(size=centers.shape)
    ids = [f"{s}/{f}.wav" for s in range(count) for f in range(files)]
    trials = [
        (f"{s}/{f}.wav", f"{s}/{f + 1}.wav")
        for s in range(count)
        for f in range(files - 1)
    ]
    return matrix, ids, trials


def legend_texts(figure):
    legends = [*figure.legends, *filter(None, [figure.axes[0].get_legend()])]
    texts = [text for legend in legends for text in legend.get_texts()]
    texts += [legend.get_title() for legend in legends]
    return " | ".join(text.get_text() for text in texts)


def test_curve_skips_epochs_without_a_value_and_marks_those_not_finite():
    losses = {1: 4.0, 2: None, 3: float("nan"), 4: 2.0, 5: float("inf")}
    records = [
        {"epoch": epoch, "train": {} if loss is None else {"loss": loss}}
        for epoch, loss in losses.items()
    ]
    series = {"loss": plots.values(records, "train.loss")}
    line, marks = plots.curves(series, "loss").axes[0].lines
    assert list(line.get_xdata()) == [1, 3, 4, 5]
    assert list(marks.get_xdata()) == [3, 5]


def test_curve_of_one_epoch_has_a_marker():
    (line,) = plots.curves({"loss": ([1], [4.0])}, "loss").axes[0].lines
    assert line.get_marker() == "o"


def test_several_curves_have_a_legend_of_their_names():
    figure = plots.curves({"a": ([1], [2]), "b": ([1], [3])}, "EER (%)")
    assert legend_texts(figure).startswith("a | b")


def test_det_plot_marks_the_eer_of_the_metrics():
    targets, scores = scored_trials()
    rate = 100 * metrics.eer(scores, targets)[0]
    figure = plots.det_plot({"after": det_curve(targets, scores)})
    assert f"after (EER {rate:.2f} %)" in legend_texts(figure)


def test_thinned_det_curve_keeps_its_ends_and_its_shape(monkeypatch):
    false_alarm, miss = det_curve(*scored_trials(trials=100_000))
    x, y = plots.thin(false_alarm, miss)
    monkeypatch.setattr(plots, "DET_POINTS", 10**9)
    full_x, full_y = plots.thin(false_alarm, miss)
    assert len(full_x) > 10_000 and len(x) <= 500
    assert (x[0], y[0], x[-1], y[-1]) == (
        full_x[0],
        full_y[0],
        full_x[-1],
        full_y[-1],
    )
    # no gap is longer than the even share of the way and one step of it
    gaps = np.abs(np.diff(x)) + np.abs(np.diff(y))
    steps = np.abs(np.diff(full_x)) + np.abs(np.diff(full_y))
    assert gaps.max() < steps.sum() / 499 + steps.max()


@pytest.mark.parametrize("shift", [1000.0, 0.0, -1000.0])
def test_det_plot_of_perfect_random_and_inverted_scores_can_be_drawn(shift):
    curve = det_curve(*scored_trials(trials=50, shift=shift))
    assert "<path" in plots.svg(plots.det_plot({"a": curve}), "p")


def test_histogram_shares_sum_to_100_percent_without_broken_scores():
    targets, scores = scored_trials(trials=1000)
    scores[:4] = np.nan
    axes = plots.score_histogram(targets, scores).axes[0]
    outlines = [patch for patch in axes.patches if not patch.get_fill()]
    sums = [patch.get_data().values.sum() for patch in outlines]
    assert sums == pytest.approx([100, 100])


def test_histogram_of_equal_scores_can_be_drawn():
    figure = plots.score_histogram([True, False], [1.0, 1.0], threshold=1.0)
    assert "threshold 1.000" in legend_texts(figure)


def test_target_groups_are_what_target_trials_connect_largest_first():
    groups = plots.target_groups(
        list("abcdefg"),
        [("a", "b"), ("c", "d"), ("d", "e"), ("unknown", "a"), ("g", "g")],
    )
    assert groups.tolist() == [1, 1, 0, 0, 0, -1, -1]


def test_map_colors_the_12_largest_of_38_groups_and_says_whence():
    figure, caption = plots.embedding_map(*speakers(38, 4))
    assert "the 12 largest of 38 groups" in caption
    assert "labels of the trial list" in caption
    assert "no target trial" not in caption
    gray, *colored = figure.axes[0].collections
    assert len(gray.get_offsets()) == 26 * 4
    assert [len(c.get_offsets()) for c in colored] == 12 * [4]
    looks = {
        (tuple(c.get_facecolor()[0]), len(c.get_paths()[0].vertices))
        for c in colored
    }
    assert len(looks) == 12


def test_projection_keeps_speakers_together():
    matrix, _, _ = speakers(4, 15)
    points, method = plots.project(matrix)
    points = points.reshape(4, 15, 2)
    centers = points.mean(axis=1, keepdims=True)
    radius = np.linalg.norm(points - centers, axis=-1).max()
    apart = np.linalg.norm(centers - centers.transpose(1, 0, 2), axis=-1)
    assert method == "t-SNE"
    assert radius < apart[apart > 0].min()


def test_projection_of_more_than_2000_files_is_pca():
    points, method = plots.project(np.random.randn(2001, 4))
    assert method == "PCA" and points.shape == (2001, 2)


@pytest.mark.parametrize("files, dim", [(1, 8), (2, 8), (4, 1), (40, 1)])
def test_projection_of_few_files_or_dimensions_is_finite(files, dim):
    points, method = plots.project(np.random.randn(files, dim))
    assert points.shape == (files, 2) and np.isfinite(points).all()
    assert method == ("PCA" if files < 5 else "t-SNE")


def test_map_of_collapsed_embeddings_says_so():
    ids = [str(n) for n in range(50)]
    _, caption = plots.embedding_map(np.full((50, 8), 0.3), ids, [])
    assert "PCA of 50 embeddings; all are the same" in caption
    assert "50 files have no target trial" in caption


def test_map_leaves_out_embeddings_that_are_not_finite():
    matrix, ids, trials = speakers(2, 4)
    matrix[0, 0] = np.nan
    _, caption = plots.embedding_map(matrix, ids, trials)
    assert "7 embeddings; 1 are not finite" in caption
    with pytest.raises(ValueError, match="found 0 finite rows"):
        plots.embedding_map(matrix * np.nan, ids, trials)


def test_map_with_an_id_too_few_is_an_error():
    matrix, ids, trials = speakers(2, 4)
    with pytest.raises(ValueError, match=r"\(8, 16\) for 7 files"):
        plots.embedding_map(matrix, ids[1:], trials)


def test_svg_is_compact_unique_by_prefix_and_free_of_addresses():
    targets, scores = scored_trials()
    curves = {"after": det_curve(targets, scores)}
    text = plots.svg(plots.det_plot(curves), "one", "DET")
    assert text.startswith("<svg viewBox=") and text.endswith("</svg>")
    assert len(text) < 60_000
    assert "http" not in text and "<style" not in text
    ids = re.findall(r'\bid="([^"]*)"', text)
    uses = re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", text)
    assert ids and all(name.startswith("one-") for name in ids)
    assert {a or b for a, b in uses} <= set(ids)
    assert text == plots.svg(plots.det_plot(curves), "one", "DET")


def test_colors_of_an_svg_are_those_of_the_page():
    targets, scores = scored_trials(trials=100)
    figures = [
        plots.det_plot({"a": det_curve(targets, scores)}),
        plots.score_histogram(targets, scores, threshold=1.0),
        plots.curves({"a": ([1, 2], [3, float("nan")])}, "loss"),
        plots.gate_plot(gate_record()),
        plots.embedding_map(*speakers(3, 4))[0],
    ]
    for figure in figures:
        text = plots.svg(figure, "p")
        # nothing is left that would be dark on dark
        assert not re.search(": #[0-9a-f]{6}", text)
        assert "var(--c0)" in text


def test_dense_map_is_one_picture():
    matrix, ids, trials = speakers(20, 101)
    text = plots.svg(plots.embedding_map(matrix, ids, trials)[0], "map")
    assert text.count("<image") == 1
    assert len(text) < 200_000


def test_names_with_formulas_or_markup_are_shown_as_they_are():
    curve = det_curve(*scored_trials(trials=50))
    figure = plots.det_plot({"$\\bad_{$ <b>": curve})
    assert "$\\bad_{$ &lt;b&gt;" in plots.svg(figure, "p")


def gate_record(**changes):
    """An epoch of two groups of log-losses."""
    rng = np.random.default_rng(0)
    groups = rng.normal(-4, 1.0, 7000), rng.normal(1, 0.5, 3000)
    counts, edges = np.histogram(np.concatenate(groups), 60)
    return {
        "epoch": 5,
        "threshold": -0.75,
        "accepted": True,
        "reason": "two groups of losses meet at -0.7500",
        "mixture": [[0.7, 0.3], [-4.0, 1.0], [1.0, 0.5]],
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "selected": 0.6512,
        "corrected": 0.1,
        **changes,
    }


def test_gate_plot_has_one_scale_for_losses_and_mixture():
    axes = plots.gate_plot(gate_record()).axes[0]
    heights, edges, _ = axes.patches[0].get_data()
    assert (heights * np.diff(edges)).sum() == pytest.approx(1)
    first, second, line = axes.lines
    middle = (edges[1:] + edges[:-1]) / 2
    total = sum(
        np.interp(middle, *gauss.get_data()) for gauss in (first, second)
    )
    assert np.abs(total - heights).max() < 0.05
    assert first.get_xdata()[first.get_ydata().argmax()] < -3
    assert set(line.get_xdata()) == {-0.75}
    assert first.get_linestyle() == "-"


def test_gate_plot_says_epoch_share_and_reason():
    figure = plots.gate_plot(gate_record())
    assert figure.axes[0].get_title() == "epoch 5: 65.1 % selected"
    assert "two groups of losses meet at -0.7500" in legend_texts(figure)
    assert "threshold -0.750" in legend_texts(figure)
    assert "70 % at -4.00" in legend_texts(figure)


def test_gate_plot_without_a_gate():
    record = gate_record(threshold=None, mixture=None, selected=None)
    figure = plots.gate_plot(record)
    assert not figure.axes[0].lines
    assert legend_texts(figure) == "two groups of losses meet at -0.7500"
    assert figure.axes[0].get_title() == "epoch 5"


def test_a_refused_mixture_is_dotted_and_may_be_narrow():
    narrow = [[0.5, 0.5], [-4.0, 1.0], [1e-6, 0.5]]
    record = gate_record(accepted=False, mixture=narrow)
    axes = plots.gate_plot(record).axes[0]
    assert {line.get_linestyle() for line in axes.lines[:2]} == {":"}
    assert axes.get_ylim()[1] < 1


def test_gate_plot_of_no_losses_says_so(tmp_path):
    for edges, counts in ([], []), ([0.0, 1.0], [0]):
        found = {"edges": edges, "counts": counts}
        figure = plots.gate_plot(gate_record(histogram=found))
        assert figure.axes[0].texts[0].get_text() == "no finite loss"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"histogram": None}, "expected a histogram"),
        ({"histogram": {"edges": [0, 1], "counts": [1, 2]}}, "n \\+ 1 asc"),
        ({"histogram": {"edges": [1, 0], "counts": [1]}}, "ascending"),
        ({"histogram": {"edges": ["a", 1], "counts": [1]}}, "histogram"),
        ({"mixture": [[1, 0], [0, 1], [1, 0]]}, "positive deviations"),
        ({"mixture": [0.5, 0.5]}, "a mixture of"),
    ],
)
def test_a_gate_of_other_form_is_an_error_that_names_the_epoch(
    changes, message
):
    with pytest.raises(ValueError, match=f"epoch 5: .*{message}"):
        plots.gate_plot(gate_record(**changes))


def test_figure_is_saved_whole_in_the_format_of_its_name(tmp_path):
    targets, scores = scored_trials(trials=100)
    path = tmp_path / "scores.png"
    figure = plots.score_histogram(targets, scores)
    plots.save(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError):
        plots.save(figure, tmp_path / "scores.nonsense")
    assert [p.name for p in tmp_path.iterdir()] == ["scores.png"]


def test_drawing_leaves_the_users_style_and_pyplot_alone():
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy();"
        "from speechbrain_ssl.report import plots;"
        "plots.svg(plots.curves({'loss': ([1], [2])}, 'loss'), 'p');"
        "print('matplotlib.pyplot' in sys.modules,"
        " dict.__eq__(before, matplotlib.rcParams))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert run.stdout.split() == ["False", "True"], run.stderr


def test_missing_matplotlib_is_an_error_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"speechbrain_ssl\[report\]"):
        plots.score_histogram([True], [1.0])
