"""An exported model as one file for ONNX runtimes::

    > python -m speechbrain_ssl.onnx MODEL_FOLDER encoder.onnx

The network takes ``waveforms`` [batch, time], float32 at the model's rate, all
of one length, features included, and gives ``embeddings`` [batch, emb_dim]. Any
length and batch size goes. It needs ``pip install speechbrain_ssl[onnx]``.
"""

import argparse
import copy
import os
import sys
import tempfile

import torch
from speechbrain.processing.features import STFT

from speechbrain_ssl.loading import load_encoder

# batch size and seconds that the file is tried with
TRIALS = ((1, 0.3), (3, 1.234), (2, 2.0))
TOLERANCE = 1e-4


class ConvolvedSTFT(torch.nn.Module):
    """What SpeechBrain's STFT computes, as one convolution with the bases.

    ONNX has an operator for it, which torch exports as well. But runtimes are
    made for convolutions: onnxruntime took 0.02 s for 8 x 3 s of audio and a
    tiny encoder this way, 0.10 s with the operator.

    Arguments
    ---------
    stft : speechbrain.processing.features.STFT
        With frames that are centered and padded by zeros, as by default.

    Raises
    ------
    ValueError
        If it has other settings.

    Example
    -------
    >>> stft = STFT(sample_rate=16000)
    >>> wavs = torch.randn(2, 8000)
    >>> (ConvolvedSTFT(stft)(wavs) - stft(wavs)).abs().max() < 1e-4
    tensor(True)
    """

    def __init__(self, stft):
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

    def forward(self, wavs):
        """Waveforms to spectra.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms [batch, time].

        Returns
        -------
        torch.Tensor
            Real and imaginary parts [batch, frames, n_fft // 2 + 1, 2].
        """
        half = self.n_fft // 2
        wavs = torch.nn.functional.pad(wavs, (half, half))[:, None]
        spectra = torch.nn.functional.conv1d(
            wavs, self.bases, stride=self.hop_length
        )
        return torch.stack(spectra.chunk(2, dim=1), dim=-1).transpose(1, 2)


class Encoder(torch.nn.Module):
    """Features, normalisation and network of an exported model.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        ``mods`` of an EncoderClassifier; they are copied.
    """

    def __init__(self, modules):
        super().__init__()
        self.compute_features = copy.deepcopy(modules["compute_features"])
        self.mean_var_norm = copy.deepcopy(modules["mean_var_norm"])
        self.embedding_model = copy.deepcopy(modules["embedding_model"])
        for module in list(self.compute_features.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, STFT):
                    setattr(module, name, ConvolvedSTFT(child))

    def forward(self, waveforms):
        """Waveforms to embeddings.

        Arguments
        ---------
        waveforms : torch.Tensor
            Of one length [batch, time].

        Returns
        -------
        torch.Tensor
            Embeddings [batch, emb_dim].
        """
        features = self.compute_features(waveforms)
        lengths = torch.ones_like(waveforms[:, 0])
        features = self.mean_var_norm(features, lengths)
        return self.embedding_model(features, lengths).flatten(1)


def export_onnx(model_folder, path):
    """Writes an exported model as an ONNX file, and checks it.

    The file appears when it has given the embeddings of the model, to 1e-4,
    for several lengths and batch sizes in onnxruntime.

    Arguments
    ---------
    model_folder : str
        An exported folder.
    path : str
        The file to write.

    Returns
    -------
    float
        Largest difference that was found.

    Raises
    ------
    FileNotFoundError
        If there is no such model.
    ImportError
        If the extra ``onnx`` is not installed.
    ValueError
        If the file gives other embeddings.
    """
    try:
        import onnxruntime  # noqa: F401 (before the work)
        import onnxscript  # noqa: F401 (that torch's exporter needs)
    except ImportError as error:
        raise ImportError(
            f"An ONNX export needs {error.name}: pip install "
            "speechbrain_ssl[onnx]"
        ) from error
    model = load_encoder(model_folder)
    encoder = Encoder(model.mods).eval()
    rate = model.audio_normalizer.sample_rate
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=folder) as staging:
        draft = os.path.join(staging, name)
        _write(encoder, rate, draft)
        worst = _compare(model, rate, draft)
        os.replace(draft, path)
    return worst


def _write(encoder, rate, path):
    """Exports with batch size and length left open."""
    dynamic = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        encoder,
        (torch.zeros(2, rate),),
        path,
        input_names=["waveforms"],
        output_names=["embeddings"],
        dynamic_shapes={"waveforms": {0: dynamic, 1: dynamic}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


@torch.no_grad()
def _compare(model, rate, path):
    """Largest difference of an ONNX file to the model itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, seconds in TRIALS:
        wavs = torch.randn(batch, round(seconds * rate), generator=generator)
        expected = model.encode_batch(wavs / 10).flatten(1)
        (found,) = session.run(None, {"waveforms": (wavs / 10).numpy()})
        difference = (torch.from_numpy(found) - expected).abs().max()
        worst = max(worst, float(difference))
    if not worst <= TOLERANCE:
        raise ValueError(
            f"The ONNX file gives other embeddings than the model: they "
            f"differ by up to {worst:.1e}, more than {TOLERANCE}. Nothing was "
            "written."
        )
    return worst


def main(argv=None):
    """The command line of ``export_onnx``.

    Arguments
    ---------
    argv : list of str
        ``sys.argv[1:]`` by default.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model_folder")
    parser.add_argument("path", metavar="encoder.onnx")
    args = parser.parse_args(argv)
    try:
        worst = export_onnx(**vars(args))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"onnx: {error}")
    print(f"{args.path}: differs from the model by {worst:.1e} at most")


if __name__ == "__main__":
    main()
