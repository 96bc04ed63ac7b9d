"""Opens a page in the browser that compares two recordings::

    > pip install 'speechbrain_ssl[page]'
    > speechbrain-ssl demo-page MODEL_FOLDER [--threshold 0.4] [--port 7860]

The page takes two recordings, from the microphone or from files, and shows the
cosine of their embeddings, the decision at the threshold (the given one, or that
of the model) and a plot: the score beside the threshold, and the cosines of
windows of both recordings. It is served on this machine only; recordings are
kept in a temporary folder and deleted within an hour.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from speechbrain.utils.distributed import infer_device

from speechbrain_ssl import hub
from speechbrain_ssl.cli.score import decision, threshold_of
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.embedding import EncoderError, try_files
from speechbrain_ssl.evaluation.scoring import cosine_scores, unit
from speechbrain_ssl.extras import extra
from speechbrain_ssl.help import command_parser, one_line
from speechbrain_ssl.loading import add_trust, load_encoder
from speechbrain_ssl.report.plots import score_plot

if TYPE_CHECKING:
    import gradio
    from matplotlib.figure import Figure

# windows of a recording in the plot
WINDOW_SECONDS, MOST_WINDOWS = 1.5, 24
TITLE = "Are these two recordings of the same speaker?"
KEPT_SECONDS = 1800  # of recordings in the temporary folder


def compare(
    encode: Callable,
    sample_rate: int,
    threshold: float | None,
    enrol: str,
    test: str,
    device: str = "cpu",
) -> tuple[str, "Figure"]:
    """Compares two recordings: text for people, and the plot of ``score_plot``.

    ``threshold`` is the lowest cosine that counts as the same speaker; None: no
    decision.
    """
    settings = {"device": device, "progress": False}
    paths = [enrol, test]
    found = try_files(encode, paths, sample_rate, strict=True, **settings)
    score = float(cosine_scores(found.rows, [0], [1])[0])
    lines = [f"score {score:.4f}"]
    if threshold is None:
        lines.append("no decision: the model has no threshold.json")
    else:
        lines.append(decision(score, threshold))
    lines += found.notes()
    spans = [_spans(path) for path in paths]
    cut = try_files(
        encode,
        [path for path, own in zip(paths, spans) for _ in own],
        sample_rate,
        spans=[span for own in spans for span in own],
        **settings,
    )
    kept = np.array([n not in cut.failed for n in range(len(cut.rows))])
    cosines = np.full((len(kept), len(kept)), np.nan, np.float32)
    if kept.any():
        rows = unit(cut.rows[np.flatnonzero(kept)])
        cosines[np.ix_(kept, kept)] = (rows @ rows.T).numpy()
    first = len(spans[0])
    figure = score_plot(score, threshold, cosines[:first, first:])
    return "\n".join(lines), figure


def make_page(
    model_folder: str,
    threshold: float | None = None,
    device: str | None = None,
    trust: Sequence[str] = (),
) -> "gradio.Blocks":
    """Makes the page; its method ``launch`` serves it.

    ``threshold`` is the lowest cosine that counts as the same speaker; None:
    the model's own.
    """
    # before the import: nothing is sent to Gradio's makers
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = extra("gradio")
    model_folder = hub.local_folder(model_folder)
    device = device or infer_device()
    model = load_encoder(model_folder, device, trust)
    threshold = threshold_of(model_folder, model, threshold)
    rate = model.audio_normalizer.sample_rate

    def answer(enrol, test):
        if not enrol or not test:
            message = "Record or choose two recordings first."
            raise gradio.Error(message, print_exception=False)
        settings = rate, threshold, enrol, test, device
        try:
            return compare(model.encode_batch, *settings)
        except (OSError, ValueError, EncoderError) as error:
            raise gradio.Error(str(error), print_exception=False) from error

    kept = KEPT_SECONDS, KEPT_SECONDS
    with gradio.Blocks(title=TITLE, delete_cache=kept) as page:
        gradio.Markdown(f"# {TITLE}")
        with gradio.Row():
            recordings = [
                gradio.Audio(
                    sources=["upload", "microphone"],
                    type="filepath",
                    label=label,
                    elem_id=name,
                )
                for label, name in (
                    ("first recording", "enrol"),
                    ("second recording", "test"),
                )
            ]
        button = gradio.Button("Compare", variant="primary", elem_id="compare")
        text = gradio.Textbox(label="result", elem_id="result", lines=2)
        figure = gradio.Plot(label="score and windows", elem_id="figure")
        button.click(answer, recordings, [text, figure], api_name="compare")
    return page


def launch(page: "gradio.Blocks", **options: Any) -> tuple[Any, str, str]:
    """Serves the page on this machine, without fonts of other servers.

    Gives server, local address and an empty public address.
    """
    import gradio

    return page.launch(
        server_name="127.0.0.1",
        share=False,
        ssr_mode=False,
        footer_links=[],
        theme=gradio.themes.Default(
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        **options,
    )


def _spans(path):
    """Evenly spaced windows of a recording, in frames."""
    frames, rate, _ = audio.info(path)
    length = min(round(WINDOW_SECONDS * rate), frames)
    count = min(MOST_WINDOWS, 1 + (frames - length) // max(length // 2, 1))
    starts = np.linspace(0, frames - length, count).astype(int)
    return [(start, start + length) for start in starts.tolist()]


def main(argv: list[str] | None = None) -> None:
    """The command line of the page."""
    parser = command_parser(__doc__)
    parser.add_argument("model_folder")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--port", type=int, help="default: the first free one")
    parser.add_argument("--no_browser", action="store_true")
    parser.add_argument("--device")
    add_trust(parser)
    args = vars(parser.parse_args(argv))
    port, no_browser = args.pop("port"), args.pop("no_browser")
    with one_line("demo-page"):
        page = make_page(**args)
        launch(page, server_port=port, inbrowser=not no_browser)
