"""Speaker encoders in ONNX files, for embeddings only.

Three kinds are read: files of ``speechbrain-ssl onnx``, whose input is
waveforms, and those of WeSpeaker and of 3D-Speaker, whose input is 80 log mel
energies as in Kaldi. ONNX files cannot be trained: they may be teachers, whose
embeddings are clustered into labels for another encoder.
"""

import os

import torch
from speechbrain.dataio.preprocess import AudioNormalizer
from torchaudio.compliance import kaldi

from speechbrain_ssl.extras import extra

MELS = 80
# The two projects compute features with different windows. WeSpeaker's files
# name their input "feats", those of 3D-Speaker "feature" or "x".
WINDOWS = {"feats": "hamming"}
DEFAULT_RATE = 16000


class OnnxEncoder:
    """An ONNX file with the interface of an EncoderClassifier.

    Its metadata may hold ``sample_rate`` (default 16000), ``framework``
    (wespeaker or 3d-speaker) and ``threshold`` (on the cosine). ``device`` is
    ``cpu``, or a GPU where onnxruntime has its provider. It is a ValueError if
    it is no ONNX file, or its inputs are others than those above.
    """

    def __init__(self, path: str, device: str = "cpu"):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no ONNX file {path}.")
        onnxruntime = extra("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        if torch.device(device).type == "cuda":
            providers.insert(0, "CUDAExecutionProvider")
        try:
            self.session = onnxruntime.InferenceSession(
                path, options, providers=providers
            )
        except Exception as error:  # of onnxruntime, which has no common base
            raise ValueError(
                f"{path} is no ONNX file that onnxruntime "
                f"{onnxruntime.__version__} reads: {error}"
            ) from error
        inputs = self.session.get_inputs()
        shapes = [entry.shape for entry in inputs]
        self.name, rank = inputs[0].name, len(shapes[0])
        width = shapes[0][-1] if rank == 3 else None
        is_known = rank == 2 or (
            rank == 3 and (width == MELS or not isinstance(width, int))
        )
        if len(inputs) != 1 or not is_known:
            raise ValueError(
                f"{path}: expected one input, waveforms [batch, time] or "
                f"features [batch, frames, {MELS}]; found {shapes}"
            )
        about = self.session.get_modelmeta().custom_metadata_map
        rate = int(about.get("sample_rate", DEFAULT_RATE))
        self.audio_normalizer = AudioNormalizer(sample_rate=rate)
        threshold = about.get("threshold")
        self.threshold = None if threshold is None else float(threshold)
        self.window = None
        if rank == 3:
            framework = about.get("framework", "").lower()
            self.window = WINDOWS.get(self.name, "povey")
            if framework:
                known = framework == "wespeaker"
                self.window = "hamming" if known else "povey"
        self.device = torch.device(device)

    def encode_batch(
        self,
        wavs: torch.Tensor,
        wav_lens: torch.Tensor | None = None,
        normalize: bool = False,
    ) -> torch.Tensor:
        """Waveforms [batch, time] to embeddings [batch, 1, emb_dim].

        Rows of different relative lengths are encoded apart, so that padding
        has no effect. ``normalize`` must be False.
        """
        if normalize:
            raise ValueError("ONNX encoders have no normalization (normalize)")
        lengths = [wavs.shape[1]] * len(wavs)
        if wav_lens is not None:
            lengths = (wav_lens * wavs.shape[1]).round().int().tolist()
        found = [torch.empty(0)] * len(wavs)
        for length in set(lengths):
            rows = [i for i, mine in enumerate(lengths) if mine == length]
            for row, one in zip(rows, self._embed(wavs[rows, :length])):
                found[row] = one
        return torch.stack(found)[:, None].to(wavs.device)

    def _embed(self, wavs):
        """Embeddings of waveforms of one length."""
        batch = wavs.detach().float().cpu()
        if self.window is not None:
            batch = torch.stack([self._features(wav) for wav in batch])
        found = self.session.run(None, {self.name: batch.numpy()})[0]
        return torch.from_numpy(found).flatten(1)

    def _features(self, wav):
        """Log mel energies with zero mean over the frames."""
        features = kaldi.fbank(
            wav[None] * 2**15,  # Kaldi has 16-bit integers
            num_mel_bins=MELS,
            sample_frequency=self.audio_normalizer.sample_rate,
            window_type=self.window,
            dither=0.0,
        )
        return features - features.mean(0)


def is_onnx(path: str | os.PathLike) -> bool:
    """Whether a model is an ONNX file, by its name."""
    return os.fspath(path).lower().endswith(".onnx")
