"""The page shows what the run folder holds, and says what it does not."""

import json
import os
import re
import shutil

import pytest

pytest.importorskip("matplotlib")
from speechbrain_ssl.report import page, plots  # noqa: E402
from speechbrain_ssl.report.render import Figure  # noqa: E402
from tests.report.pages import (  # noqa: E402
    Outline,
    gate,
    metrics,
    record,
    write_gate,
    write_list,
    write_log,
    write_run,
)


def render(folder):
    """The page as text and as outline."""
    with open(page.write_report(folder), encoding="utf-8") as file:
        text = file.read()
    return text, Outline(text)


@pytest.fixture(autouse=True)
def maps_by_pca(monkeypatch):
    """t-SNE takes most of a page's time and is tested with the plots."""
    monkeypatch.setattr(plots, "TSNE_LIMIT", 0)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run with all files, and its page."""
    folder = tmp_path_factory.mktemp("run")
    write_log(folder, [record(epoch) for epoch in (1, 2, 3)])
    write_list(folder, "after", "test", 12.5)
    write_list(folder, "before", "test", 33.25)
    (folder / "hyperparams.yaml").write_text("seed: 7 # <&>\n")
    (folder / "summary.json").write_text(
        json.dumps(
            {
                "title": "A <b>run</b> & more",
                "command": "python demo.py --name 'two words'",
                "machine": "some machine",
                "seed": 1234,
                "training_seconds": 3725.0,
                "data": {"corpus": {"name": "synthetic"}},
                "label_use": "Only <in> verification.",
            }
        )
    )
    return render(folder)


def test_page_is_one_file_without_links_scripts_or_doubled_ids(full):
    text, outline = full
    assert len(text) < 1_500_000
    assert "script" not in outline.tags and "link" not in outline.tags
    assert "http" not in text
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    assert len(outline.ids) == len(set(outline.ids)) > 100
    assert not outline.open


def test_page_has_headline_curves_figures_settings_and_command(full):
    text, outline = full
    for words in (
        "33.25 → 12.50 %",
        "95 %: 32.25–34.25 → 11.50–13.50",
        "minDCF\u00a0p=0.01 0.900 → 0.900",
        "1 h 2 min",
        "95 views/s",
        "No warning in 3 epochs.",
        "t-SNE of 40 embeddings",
        "before (EER",
        "after (EER",
        "bootstrap overspeakers",
        "seed: 7",
        "python demo.py --name 'two words'",
    ):
        assert words in outline.words, words
    # loss, lr, EER, spread, speed; DET, histogram, two maps
    assert outline.tags.count("svg") == 9
    assert "details" in outline.tags
    assert "Missing or broken" not in outline.words


def test_text_of_the_run_is_escaped(full):
    text, outline = full
    assert "A <b>run</b> & more" in outline.words
    assert "<b>run" not in text
    assert "Only <in> verification." in outline.words
    assert "seed: 7 # <&>" in outline.words


def test_page_of_an_empty_folder_says_what_is_expected(tmp_path):
    _, outline = render(tmp_path)
    assert "train_log.jsonl: missing" in outline.words
    assert "output folder of a training or of verify.py" in outline.words
    assert str(tmp_path) not in outline.words


def test_a_plain_training_has_a_title_and_nothing_to_complain_of(tmp_path):
    write_run(tmp_path)
    shutil.rmtree(tmp_path / "verification")
    (tmp_path / "save/train.csv").write_text("ID,duration\na,5400\n")
    _, outline = render(tmp_path)
    assert "MoCo · speech · 7 November 2026" in outline.words
    assert "1 utterance, 1 h 30 min" in outline.words
    assert "Missing" not in outline.words
    assert "No speaker label was used in training." in outline.words
    assert "loss: what <training> minimizes" in outline.words.replace(
        "Loss", "loss"
    )


def test_a_training_without_the_comment_of_a_recipe_is_named_by_its_objective(
    tmp_path,
):
    text = "objective: !new:mine.Triplet {}\ndata_folder: /x/vox/\n"
    (tmp_path / "hyperparams.yaml").write_text(text)
    write_log(tmp_path, [record(1)])
    assert "Triplet · vox" in render(tmp_path)[1].words


@pytest.mark.parametrize(
    "losses, stats, words",
    [
        ((4.0, 2.0), {}, "Learning, no collapse; effective rank 37 of 192"),
        ((4.0, 4.5), {}, "No collapse, but the loss did not fall"),
        ((4.0, float("nan")), {}, "The loss is not finite: do not use"),
        ((4.0, 2.0), {"warnings": ["x"]}, "The last epoch gave warnings"),
        ((4.0, 2.0), {"selected": 0.0}, "The gate selects nothing"),
        ((4.0, 2.0), {"effective_rank": None}, "No warning in the last epoch"),
    ],
)
def test_the_page_begins_with_a_verdict(losses, stats, words, tmp_path):
    warnings = stats.pop("warnings", [])
    rank = {"effective_rank": 37.2, "rank_share": 37.2 / 192, **stats}
    log = [record(n, **rank, loss=x) for n, x in enumerate(losses, start=1)]
    log[-1]["warnings"] = warnings
    write_log(tmp_path, log)
    _, outline = render(tmp_path)
    assert words in outline.words
    assert outline.words.index(words) < outline.words.index("Training time")


def test_accuracy_is_of_views_unless_there_are_pseudo_labels(tmp_path):
    write_log(tmp_path, [record(n, accuracy=0.5) for n in (1, 2)])
    words = render(tmp_path)[1].words
    assert "Contrastive accuracy" in words and "pseudo-label" not in words
    log = [record(n, accuracy=0.5, label_loss=1.0) for n in (1, 2)]
    write_log(tmp_path, log)
    words = render(tmp_path)[1].words
    assert "Accuracy on pseudo-labels" in words
    assert "ontrastive" not in words


def test_statistics_have_the_meanings_that_the_run_stored(tmp_path):
    (tmp_path / "save").mkdir()
    help_of = {"of_a_plugin": "what <my> loss counts"}
    (tmp_path / "stats_help.json").write_text(json.dumps(help_of))
    write_log(tmp_path, [record(n, of_a_plugin=0.5 * n) for n in (1, 2)])
    text, outline = render(tmp_path)
    # at the curve and in the table
    assert outline.words.count("what <my> loss counts") == 2
    assert "Of a plugin" in outline.words and "<my>" not in text


def test_the_page_of_a_folder_of_verify_has_its_lists(tmp_path):
    write_list(tmp_path, "after", "test", 12.5)
    os.rename(tmp_path / "verification/after/test", tmp_path / "test")
    os.removedirs(tmp_path / "verification/after")
    _, outline = render(tmp_path)
    assert "12.50 %" in outline.words and outline.tags.count("svg") == 3


def test_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        page.write_report(tmp_path / "nowhere")


def test_page_of_one_epoch_without_verification(tmp_path):
    write_log(tmp_path, [record(1)])
    _, outline = render(tmp_path)
    assert "No warning in 1 epoch." in outline.words
    # a curve of one point says no more than the table
    assert outline.tags.count("svg") == 0
    assert "embedding spread0.9" in outline.words


def test_loss_that_is_not_finite_is_a_warning(tmp_path):
    write_log(tmp_path, [record(1), record(2, loss=float("nan")), record(3)])
    _, outline = render(tmp_path)
    assert "The training loss is not finite. (epoch 2)" in outline.words
    assert "No warning in 3 epochs" not in outline.words


def test_equal_warnings_are_one_line_with_their_epochs():
    records = [{**record(n), "warnings": ["Collapse."]} for n in (1, 2, 4)]
    assert page.log_warnings(records) == ["Collapse. (epochs 1, 2, 4)"]


def test_warnings_that_differ_in_numbers_are_one_line_with_the_latest():
    records = [
        {**record(n), "warnings": [f"Only {n}.5 of 7 dimensions."]}
        for n in range(1, 9)
    ]
    assert page.log_warnings(records) == [
        "Only 8.5 of 7 dimensions. (8 epochs from 1 to 8)"
    ]


def test_log_without_collapse_statistics_is_not_called_healthy(tmp_path):
    write_log(tmp_path, [{"epoch": 1, "train": {"loss": 1.0}}])
    _, outline = render(tmp_path)
    assert "no collapse statistics" in outline.words


def test_broken_files_are_named_and_the_rest_is_shown(tmp_path):
    place = write_list(tmp_path, "after", "test", 12.5)
    (tmp_path / "summary.json").write_text("[1]")
    (tmp_path / "hyperparams.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "train_log.jsonl").write_text('7\n{"epoch": "x"}\n')
    (place / "embeddings.npy").write_bytes(b"")
    _, outline = render(tmp_path)
    for words in (
        "summary.json: expected a JSON object, found list",
        "train_log.jsonl, line 1: expected a JSON object",
        'train_log.jsonl, line 2: expected a number as "epoch"',
        "verification/after/test/embeddings.npy: the file is empty",
        "12.50 %",
    ):
        assert words in outline.words, words
    assert outline.tags.count("svg") == 2


def test_values_of_wrong_types_do_not_stop_the_page(tmp_path):
    odd = {"epoch": 1, "train": [1], "valid": None, "warnings": "one"}
    write_log(tmp_path, [odd])
    summary = {"title": None, "machine": {"cpu": "x"}, "training_seconds": "?"}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    place = write_list(tmp_path, "after", "test", 1.0)
    (place / "metrics.json").write_text('{"raw": {"EER": "a"}, "as_norm": 3}')
    _, outline = render(tmp_path)
    assert "one (epoch 1)" in outline.words


def test_trials_of_one_kind_leave_out_the_det_curve_only(tmp_path):
    place = write_list(tmp_path, "after", "test", 1.0)
    (place / "scores.txt").write_text("1 0.wav 4.wav 0.5\n")
    _, outline = render(tmp_path)
    assert outline.tags.count("svg") == 2
    assert "DET curves, test" not in outline.words


def test_20000_trials_of_long_paths_fit_on_the_page(tmp_path):
    prefix = "folder/" * 40
    write_list(tmp_path, "after", "n" * 200, 5.0, 2100, 20_000, prefix)
    text, _ = render(tmp_path)
    assert len(text) < 1_500_000


def test_figures_are_drawn_for_the_first_lists_only(tmp_path):
    for name in ("a", "b", "c", "d"):
        place = write_list(tmp_path, "after", name, 5.0)
        (place / "embeddings.npy").unlink()
    _, outline = render(tmp_path)
    assert outline.tags.count("svg") == 3 * 2
    assert "first 3 trial lists only" in outline.words


def test_as_norm_has_its_own_column(tmp_path):
    place = write_list(tmp_path, "after", "test", 12.5)
    both = {"raw": metrics(12.5), "as_norm": metrics(11.75)}
    (place / "metrics.json").write_text(json.dumps(both))
    _, outline = render(tmp_path)
    assert "after, AS-norm" in outline.words and "11.75" in outline.words


def test_a_run_without_gate_has_no_section_of_it(full):
    assert "The gate" not in full[1].words


def test_gate_is_drawn_at_both_ends_and_12_times_at_most(tmp_path):
    write_gate(tmp_path, [gate(epoch) for epoch in range(1, 41)])
    text, outline = render(tmp_path)
    titles = re.findall(r"<b>Gate after epoch (\d+)</b>", text)
    assert len(titles) == len(set(titles)) == 12
    assert (titles[0], titles[-1]) == ("1", "40")
    assert len(outline.ids) == len(set(outline.ids))
    # in a picture or not, the reason of each epoch is there as text
    assert "Decisions in 40 epochs" in outline.words
    for epoch in range(1, 41):
        assert f"reason <{epoch}>" in outline.words
    assert "0.500yes62.5\xa0%–" in outline.words


def test_the_gate_of_faces_has_a_section_of_its_own(tmp_path):
    write_gate(tmp_path, [gate(1), gate(2)])
    write_gate(tmp_path, [gate(1, threshold=1.25)], "face_gate.jsonl")
    text, outline = render(tmp_path)
    assert text.count("<b>Gate after epoch") == 2
    assert text.count("<b>Gate of faces after epoch 1</b>") == 1
    voice, face = outline.words.split("The gate of faces")
    assert "Decisions in 2 epochs" in voice and "0.500yes" in voice
    assert "Decisions in 1 epoch" in face and "1.250yes" in face
    assert len(outline.ids) == len(set(outline.ids))


def test_gates_share_an_axis(tmp_path, monkeypatch):
    drawn = []

    def watch(figure, title, text=""):
        drawn.append(figure.axes[0].get_xlim())
        return Figure(title, "", text)

    monkeypatch.setattr(page, "figure", watch)
    write_gate(tmp_path, [gate(1), gate(9)])
    render(tmp_path)
    assert drawn[0] == drawn[1] and drawn[0][0] <= -15


def test_a_gate_that_cannot_be_drawn_is_noted(tmp_path):
    odd = [gate(1), {"epoch": 2}, {**gate(3), "mixture": [1]}]
    odd += [{**gate(4), "reason": None, "threshold": "x", "accepted": "x"}]
    write_gate(tmp_path, odd)
    text, outline = render(tmp_path)
    assert text.count("<b>Gate after") == 2
    assert "Gate of epoch 2: expected a histogram" in outline.words
    assert "Gate of epoch 3: expected a histogram" in outline.words


def test_pseudo_labels_have_curves(tmp_path):
    names = ("selected", "corrected", "label_changed", "accuracy", "confidence")
    stats = dict(zip(names, (0.5, 0.25, 0.125, 0.75, 0.9)))
    write_log(tmp_path, [record(1, **stats), record(2, **stats)])
    text, outline = render(tmp_path)
    # loss, lr, EER, spread, speed, and these
    assert outline.tags.count("svg") == 5 + len(names)
    assert "Selected" in outline.words and "Label changed" in outline.words


def test_page_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    output = tmp_path / "report.html"
    output.write_text("old")
    monkeypatch.setattr(page, "page", lambda run: b"no text")
    with pytest.raises(TypeError):
        page.write_report(tmp_path)
    assert output.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_command_writes_where_it_is_told(tmp_path, capsys):
    output = tmp_path / "there.html"
    page.main([str(tmp_path), "--output", str(output)])
    assert capsys.readouterr().out.strip() == str(output)
    assert output.read_text().startswith("<!DOCTYPE html>")


def test_selfcheck_has_a_card_a_curve_and_a_row(tmp_path):
    records = [record(epoch) for epoch in (1, 2, 3)]
    for number, entry in enumerate(records[1:]):
        entry["valid"] = {"selfcheck": 0.8 - number, "selfcheck_EER": 21.5}
    write_log(tmp_path, records)
    text, outline = render(tmp_path)
    assert "-0.200 bits" in outline.words and "after epoch 3" in outline.words
    assert "EER of the same 21.50 %" in outline.words
    assert 'aria-label="selfcheck EER' in text
    assert outline.words.count("selfcheck EER") >= 2


def test_a_folder_that_is_not_there_is_named_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="report: .*found no folder"):
        page.main([f"{tmp_path}/none"])
