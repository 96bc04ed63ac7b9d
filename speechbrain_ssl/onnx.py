"""An exported model as one file for ONNX runtimes.

    > python -m speechbrain_ssl.onnx MODEL_FOLDER encoder.onnx

The file takes ``waveforms`` [batch, time], float32 at the model's rate and of
one length, and gives ``embeddings`` [batch, emb_dim]; the features are part of
it. Batch and length are free; audio below 0.1 s is repeated up to that, as by
the other commands. The metadata of the file hold ``sample_rate``, ``emb_dim``
and, where the model has one, ``threshold``. It needs ``pip install
'speechbrain_ssl[onnx]'``.
"""

import contextlib
import copy
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from speechbrain.processing.features import STFT

from speechbrain_ssl import hub
from speechbrain_ssl.card import read_threshold
from speechbrain_ssl.dataio.embedding import MIN_SECONDS
from speechbrain_ssl.extras import extra
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.help import command_parser, one_line
from speechbrain_ssl.loading import add_trust, load_encoder
from speechbrain_ssl.nnet.onnx_encoder import is_onnx

# batch size and seconds that the file is tried with
TRIALS = ((1, 0.3), (3, 1.234), (2, 2.0), (2, 0.025))
TOLERANCE = 1e-4
OPSET = 18


class ConvolvedSTFT(torch.nn.Module):
    """SpeechBrain's STFT as one convolution with the Fourier bases.

    ONNX has an operator for the STFT, but runtimes are made for convolutions:
    onnxruntime took 0.02 s for 8 x 3 s of audio and a tiny encoder this way,
    0.10 s with the operator. Frames must be centered and padded by zeros, as by
    default.
    """

    bases: torch.Tensor

    def __init__(self, stft: STFT):
        super().__init__()
        usual = (True, "constant", False, True)
        found = stft.center, stft.pad_mode, stft.normalized_stft, stft.onesided
        if found != usual:
            raise ValueError(
                "Only a centered, onesided STFT with zeros at the borders, "
                "not normalized, can be exported."
            )
        self.n_fft, self.hop_length = stft.n_fft, stft.hop_length
        before = (stft.n_fft - stft.win_length) // 2
        after = stft.n_fft - stft.win_length - before
        window = torch.nn.functional.pad(stft.window.double(), (before, after))
        times = torch.arange(stft.n_fft)
        turns = times[: stft.n_fft // 2 + 1, None] * times % stft.n_fft
        angles = 2 * torch.pi * turns.double() / stft.n_fft
        bases = torch.cat([angles.cos(), -angles.sin()]) * window
        self.register_buffer("bases", bases.float()[:, None])

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """Waveforms [batch, time] to spectra.

        Real and imaginary parts are [batch, frames, n_fft // 2 + 1, 2].
        """
        half = self.n_fft // 2
        wavs = torch.nn.functional.pad(wavs, (half, half))[:, None]
        spectra = torch.nn.functional.conv1d(
            wavs, self.bases, stride=self.hop_length
        )
        return torch.stack(spectra.chunk(2, dim=1), dim=-1).transpose(1, 2)


class Encoder(torch.nn.Module):
    """Features, normalization and network of an exported model.

    ``modules`` are the ``mods`` of an EncoderClassifier, which are copied.
    Audio of fewer than ``shortest`` samples is repeated.
    """

    def __init__(self, modules: torch.nn.ModuleDict, shortest: int):
        super().__init__()
        self.shortest = shortest
        self.compute_features = copy.deepcopy(modules["compute_features"])
        self.mean_var_norm = copy.deepcopy(modules["mean_var_norm"])
        self.embedding_model = copy.deepcopy(modules["embedding_model"])
        for module in list(self.compute_features.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, STFT):
                    setattr(module, name, ConvolvedSTFT(child))

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms of one length [batch, time] to [batch, emb_dim]."""
        places = torch.arange(torch.sym_max(waveforms.shape[1], self.shortest))
        # a tensor: the exporter knows no remainder of symbolic numbers
        count = torch.ones_like(waveforms[0], dtype=torch.int64).sum()
        waveforms = waveforms[:, torch.remainder(places, count)]
        features = self.compute_features(waveforms)
        # all of one length: without lengths nothing depends on their values
        lengths = torch.ones_like(waveforms[:, 0])
        features = self.mean_var_norm(features, lengths)
        return self.embedding_model(features).flatten(1)


def export_onnx(
    model_folder: str, path: str, trust: Sequence[str] = ()
) -> float:
    """Writes an exported model as an ONNX file, and checks it.

    The file appears when it has given the embeddings of the model, to 1e-4, for
    several lengths and batch sizes in onnxruntime. Gives the largest
    difference.
    """
    for package in ("onnxruntime", "onnxscript"):  # before the work
        extra(package)
    if is_onnx(model_folder):
        raise ValueError(f"{model_folder} is an ONNX file already.")
    model_folder = hub.local_folder(model_folder)
    model: Any = load_encoder(model_folder, trust=trust)
    rate = model.audio_normalizer.sample_rate
    encoder = Encoder(model.mods, round(MIN_SECONDS * rate)).eval()
    threshold = (read_threshold(model_folder) or {}).get("threshold")
    folder, name = os.path.split(os.path.abspath(path))
    with (
        write_whole(path, "wb") as file,
        tempfile.TemporaryDirectory(prefix=".onnx-", dir=folder) as staging,
    ):
        draft = os.path.join(staging, name)
        _write(encoder, rate, threshold, draft)
        worst = _compare(model, rate, draft)
        with open(draft, "rb") as made:
            shutil.copyfileobj(made, file)
    return worst


def _write(encoder, rate, threshold, path):
    """Exports with batch size and length left open."""
    wavs = torch.zeros(2, rate)
    with torch.no_grad():
        dim = encoder(wavs).shape[1]
    metadata: dict[str, Any] = {"sample_rate": rate, "emb_dim": dim}
    if threshold is not None:
        metadata["threshold"] = threshold
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                encoder,
                (wavs,),
                input_names=["waveforms"],
                output_names=["embeddings"],
                dynamic_shapes={"waveforms": {0: "batch", 1: "time"}},
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().split("\n")[0]
        raise ValueError(
            f"torch {torch.__version__} cannot express this model in ONNX: "
            f"{type(cause).__name__}: {reason}"
        ) from error
    for key, value in metadata.items():
        program.model.metadata_props[key] = str(value)
    program.save(path, external_data=False)


@contextlib.contextmanager
def _quiet():
    """Hides what the exporter says of each of its attempts."""
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@torch.no_grad()
def _compare(model, rate, path):
    """Largest difference of an ONNX file to the model itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(0)
    shortest, worst = round(MIN_SECONDS * rate), 0.0
    for batch, seconds in TRIALS:
        wavs = torch.randn(batch, round(seconds * rate), generator=generator)
        wavs = wavs / 10
        long = wavs.repeat(1, -(-shortest // wavs.shape[1]))
        expected = model.encode_batch(
            long[:, :shortest] if wavs.shape[1] < shortest else wavs
        ).flatten(1)
        (found,) = session.run(None, {"waveforms": wavs.numpy()})
        difference = (torch.from_numpy(found) - expected).abs().max()
        worst = max(worst, float(difference))
    if not worst <= TOLERANCE:
        raise ValueError(
            f"The ONNX file gives other embeddings than the model: they "
            f"differ by up to {worst:.1e}, more than {TOLERANCE}. Nothing was "
            "written."
        )
    return worst


def main(argv: list[str] | None = None) -> None:
    """The command line of ``export_onnx``."""
    parser = command_parser(__doc__)
    parser.add_argument("model_folder")
    parser.add_argument("path", metavar="encoder.onnx")
    add_trust(parser)
    args = parser.parse_args(argv)
    with one_line("onnx"):
        worst = export_onnx(**vars(args))
    print(f"{args.path}: differs from the model by {worst:.1e} at most")


if __name__ == "__main__":
    main()
