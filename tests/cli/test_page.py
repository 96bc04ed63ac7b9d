"""The local page: two recordings in, score, decision and plot out."""

import sys

import numpy as np
import pytest
import soundfile

pytest.importorskip("matplotlib")
from speechbrain_ssl.cli import page  # noqa: E402
from speechbrain_ssl.cli.score import verify  # noqa: E402
from speechbrain_ssl.loading import load_encoder  # noqa: E402
from tests import browser  # noqa: E402
from tests.models import export_model, write_noise  # noqa: E402

OUTPUT = "document.querySelector('#result textarea')?.value"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model and two recordings."""
    folder = tmp_path_factory.mktemp("page")
    return (
        export_model(folder / "model"),
        write_noise(folder / "a.wav", 3.2),
        write_noise(folder / "b.flac", 0.5, rate=8000, seed=1, channels=2),
    )


def test_text_and_plot_show_the_score_of_the_command(pair):
    model, *paths = pair
    score = verify(*pair).score
    encode = load_encoder(model).encode_batch
    text, figure = page.compare(encode, 16000, score - 0.01, *paths)
    assert f"score {score:.4f}" in text and "same speaker" in text
    text, _ = page.compare(encode, 16000, score + 0.01, *paths)
    assert "different speakers" in text
    line, grid, _ = figure.axes
    assert line.lines[0].get_xdata() == [pytest.approx(score, abs=1e-5)]
    assert line.lines[1].get_xdata()[0] == pytest.approx(score - 0.01)
    # 3.2 s are windows at 0, 0.85 and 1.7 s; the other file is one window
    (image,) = grid.images
    assert image.get_array().shape == (1, 3)
    assert not image.get_array().mask.any()


def test_windows_of_silence_are_empty_in_the_plot(pair, tmp_path):
    model, path, other = pair
    samples, rate = soundfile.read(path)
    soundfile.write(tmp_path / "a.wav", np.r_[np.zeros(40000), samples], rate)
    encode = load_encoder(model).encode_batch
    text, figure = page.compare(encode, 16000, None, f"{tmp_path}/a.wav", other)
    assert "no decision" in text and "digital silence" in text
    mask = figure.axes[1].images[0].get_array().mask[0]
    assert mask[0] and not mask[-1]


def test_a_missing_package_is_named_with_its_extra(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r"pip install .*\[page\]"):
        page.main([pair[0]])


def test_a_missing_model_is_named_without_a_traceback(tmp_path):
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit, match="demo-page: .*not an exported model"):
        page.main([str(tmp_path)])


@pytest.mark.slow
@pytest.mark.skipif("not browser.starts()", reason="Chromium does not start")
def test_chromium_compares_two_files_and_loads_nothing_from_elsewhere(
    pair, tmp_path
):
    pytest.importorskip("gradio")
    model, *paths = pair
    shown = page.make_page(model, threshold=-1.0)
    _, address, _ = page.launch(shown, prevent_thread_lock=True, quiet=True)
    try:
        with browser.tab(tmp_path) as tab:
            tab.call("Page.navigate", url=address)
            tab.wait("document.querySelectorAll('input[type=file]').length > 1")
            microphones = "[aria-label='Record audio']"
            tab.wait(f'document.querySelectorAll("{microphones}").length == 2')
            # without recordings there is an error, not a traceback
            missing = "document.body.innerText.includes('two recordings first')"
            tab.click("#compare", missing)
            for name, path in zip(("enrol", "test"), paths):
                tab.choose_file(f"#{name} input[type=file]", path)
            text = tab.click("#compare", OUTPUT)
            tab.wait("document.querySelector('#figure img')?.naturalWidth > 99")
            elsewhere = {
                url
                for url in tab.requested()
                if url.startswith(("http:", "https:"))
                and not url.startswith(address)
            }
    finally:
        shown.close()
    score = verify(model, *paths).score
    assert f"score {score:.4f}" in text
    assert "same speaker (threshold -1.0000)" in text
    assert elsewhere == set()
