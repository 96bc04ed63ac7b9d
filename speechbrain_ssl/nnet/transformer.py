"""Pretrained transformers as a part of a speaker encoder.

WavLM, HuBERT, wav2vec 2.0 and w2v-BERT 2.0, in the implementations of Hugging
Face. They need ``pip install 'speechbrain_ssl[wavlm]'``.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from speechbrain.nnet.adapters import LoRA

from speechbrain_ssl.extras import extra

# model_type of Hugging Face: first part of its class names
FAMILIES = {
    "wavlm": "WavLM",
    "hubert": "Hubert",
    "wav2vec2": "Wav2Vec2",
    "wav2vec2-bert": "Wav2Vec2Bert",
}
# Linear layers that LoRA adapts. Not those of attention: WavLM reads their
# weights without calling them, so that an adapter would do nothing there.
ADAPTED = ("intermediate_dense", "output_dense")
# keys of a configuration that say nothing about the network
IRRELEVANT = ("transformers_version", "architectures", "dtype", "torch_dtype")


class PretrainedTransformer(torch.nn.Module):
    """Hidden states of all layers of a transformer, of which parts learn.

    The hidden states are the input of each layer and the output of the whole
    encoder, which includes its last layer norm where it has one (WavLM Large).
    This is their definition in S3PRL and in version 4 of the package
    transformers; version 5 gives another last state, which is not used here.

    Utterances of different lengths are encoded in groups of equal length, so
    that padding never reaches the network: neither its group normalization
    nor its positional convolution would ignore zeros.

    Parts that do not learn stay in evaluation mode. Layers are never dropped
    at random: the pooling needs all hidden states, and DDP their gradients.

    WavLM: S. Chen et al., IEEE JSTSP 2022 (https://arxiv.org/abs/2110.13900).
    LoRA: E. Hu et al., ICLR 2022 (https://arxiv.org/abs/2106.09685).

    Arguments
    ---------
    source : str
        Name on the Hugging Face hub, or a folder in its format.
    save_path : str
        Folder for downloads; "" for the cache of Hugging Face.
    trained : list of str
        Parts of the transformer that learn; [] for none.
    gradient_checkpointing : bool
        Whether activations are computed again for the gradient: a third more
        time, a fraction of the memory.
    lora : dict
        ``rank`` and ``alpha`` of adapters of the feed-forward layers in the
        trained parts, which then learn alone; None: the parts learn.
    architecture : dict
        Makes the network with random weights where there is no ``source``:
        the result of ``architecture()``.
    sample_rate : int
        Rate of the audio in Hz, which must be 16000.

    Raises
    ------
    ImportError
        If the package transformers is missing.
    ValueError
        If the sample rate is another one, if neither or both of source and
        architecture are given, if the network is of another family, or if
        there is no such part or nothing in it that LoRA adapts.
    """

    sample_rate = 16000  # of the audio that all four families learned from

    def __init__(
        self,
        source: str | None = None,
        save_path: str = "",
        trained: Sequence[str] = ("encoder.layers",),
        gradient_checkpointing: bool = False,
        lora: Mapping[str, float] | None = None,
        architecture: Mapping[str, Any] | None = None,
        sample_rate: int = 16000,
    ):
        super().__init__()
        if sample_rate != self.sample_rate:
            raise ValueError(
                "Pretrained transformers are made for audio at "
                f"{self.sample_rate} Hz, found sample_rate {sample_rate}"
            )
        if (source is None) == (architecture is None):
            raise ValueError("Give a source or an architecture, one of them")
        if architecture is not None:
            self.model = _new(architecture["config"])
            self.normalize = architecture["normalize"]
            lora = architecture["lora"]
        else:
            self.model, self.normalize = _pretrained(source, save_path or None)
        config = self.model.config
        config.layerdrop = 0.0
        config.apply_spec_augment = False
        is_bert = config.model_type == "wav2vec2-bert"
        self.fbank = SeamlessFbank() if is_bert else None
        self.lora: dict[str, float] | None = None
        self.choose(trained, lora)
        if gradient_checkpointing:
            # the other kind needs inputs that have a gradient
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def choose(
        self, trained: Sequence[str], lora: Mapping[str, float] | None = None
    ) -> None:
        """Chooses the parts that learn; adapters start without an effect.

        ``trained`` are parts of the transformer, [] for none. ``lora`` has
        ``rank`` and ``alpha`` of adapters of these parts, which then learn
        alone; None: the parts learn, or the adapters that are there.
        """
        trained = tuple(trained)
        for part in trained:
            _check_part(self.model, part)
        if self.lora and lora not in (None, self.lora):
            raise ValueError(
                f"The transformer has adapters with {self.lora} already; "
                f"expected the same or none, found {lora}"
            )
        if lora and not self.lora:
            self.lora = dict(lora)
            self._insert_adapters(trained, **lora)
        self.trained = trained
        self._choose()
        self.train()

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The transformer's layers, from the waveform up."""
        return self.model.encoder.layers

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """16 kHz waveforms [batch, time] to hidden states.

        They are [layers + 1, batch, frames, width], with zeros behind the end
        of an utterance.
        """
        if wav_lens is None:
            return self._encode(wavs)
        lengths = (wav_lens * wavs.shape[1]).round().int().tolist()
        if len(set(lengths)) == 1:
            return self._encode(wavs[:, : lengths[0]])
        hidden: Any = None
        for length in sorted(set(lengths), reverse=True):
            rows = [i for i, found in enumerate(lengths) if found == length]
            states = self._encode(wavs[rows, :length])
            if hidden is None:
                layers, _, frames, width = states.shape
                hidden = states.new_zeros(layers, len(wavs), frames, width)
            hidden[:, rows, : states.shape[2]] = states
        return hidden

    def _encode(self, wavs):
        """Hidden states of utterances of one length."""
        if self.fbank is not None:
            wavs = self.fbank(wavs)
        elif self.normalize:
            wavs = F.layer_norm(wavs, wavs.shape[1:])
        out = self.model(wavs, output_hidden_states=True)
        return torch.stack([*out.hidden_states[:-1], out.last_hidden_state])

    def train(self, mode: bool = True) -> "PretrainedTransformer":
        """Sets the mode of the parts that learn; the others only evaluate."""
        super().train(mode)
        self.model.eval()
        for part in self.trained:
            self.model.get_submodule(part).train(mode)
        return self

    def architecture(self) -> dict[str, Any]:
        """Settings that make the same network again, without a source.

        They are the arguments ``architecture`` and ``trained``; the latter are
        the parts that have adapters.
        """
        config = self.model.config
        settings = {"model_type": config.model_type, **config.to_diff_dict()}
        settings = {
            name: value
            for name, value in settings.items()
            if name not in IRRELEVANT and not name.startswith("_")
        }
        parts = {
            "config": settings,
            "normalize": self.normalize,
            "lora": self.lora,
        }
        # tuples become lists, and anything that YAML cannot hold an error
        parts = json.loads(json.dumps(parts))
        return {"architecture": parts, "trained": list(self.trained)}

    def __reduce__(self):
        """Pickles settings and weights: torch cannot pickle weight norms."""
        learning = [n for n, p in self.named_parameters() if p.requires_grad]
        checkpointing = self.model.is_gradient_checkpointing
        state = self.state_dict(), learning, self.training
        return _restore, (self.architecture(), checkpointing, *state)

    def __deepcopy__(self, memo):
        """Copies as torch does, without the detour of a pickle."""
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def _insert_adapters(self, trained, rank, alpha=1.0):
        """Puts an adapter around each feed-forward layer of trained parts."""
        count = 0
        for part in map(self.model.get_submodule, trained):
            for name, module in list(part.named_modules()):
                parent, _, last = name.rpartition(".")
                if last in ADAPTED:
                    adapter = LoRA(module, rank=rank, alpha=alpha)
                    setattr(part.get_submodule(parent), last, adapter)
                    count += 1
        if not count:
            raise ValueError(
                f"There is no {' or '.join(ADAPTED)} in {trained} that "
                "LoRA could adapt"
            )

    def _choose(self):
        """Lets the named parts or their adapters learn, and nothing else."""
        starts = tuple(f"{part}." for part in self.trained)
        for name, parameter in self.model.named_parameters():
            chosen = name.startswith(starts) if starts else False
            if self.lora:
                chosen = chosen and ".adapter_" in name
            parameter.requires_grad_(chosen)


class SeamlessFbank(torch.nn.Module):
    """Features of w2v-BERT 2.0: log mel energies as in Kaldi, two by two.

    Hugging Face's SeamlessM4TFeatureExtractor computes the same in NumPy on
    the CPU, which neither a GPU nor an ONNX file can follow. Of an odd number
    of frames the last one is left out.

    Example
    -------
    >>> SeamlessFbank()(0.1 * torch.randn(2, 16000)).shape
    torch.Size([2, 49, 160])
    """

    window: torch.Tensor
    filters: torch.Tensor

    FRAME, HOP, FFT, MELS, STACKED = 400, 160, 512, 80, 2

    def __init__(self):
        super().__init__()
        extra("transformers")
        from transformers import audio_utils

        window = audio_utils.window_function(
            self.FRAME, "povey", periodic=False
        )
        filters = audio_utils.mel_filter_bank(
            num_frequency_bins=self.FFT // 2 + 1,
            num_mel_filters=self.MELS,
            min_frequency=20,
            max_frequency=8000,
            sampling_rate=16000,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        for name, array in (("window", window), ("filters", filters)):
            array = torch.from_numpy(np.asarray(array)).float()
            self.register_buffer(name, array, persistent=False)

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """16 kHz waveforms, of 560 samples or more [batch, time], to features.

        They have zero mean and unit variance over the frames of each utterance
        [batch, frames, 160].
        """
        with torch.autocast(wavs.device.type, enabled=False):
            # Kaldi has 16-bit integers
            frames = 2**15 * wavs.float().unfold(1, self.FRAME, self.HOP)
            frames = frames - frames.mean(-1, keepdim=True)
            before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
            frames = (frames - 0.97 * before) * self.window
            spectrum = torch.view_as_real(torch.fft.rfft(frames, self.FFT))
            energies = spectrum.square().sum(-1) @ self.filters
            mels = energies.clamp(min=1.192092955078125e-07).log()
            deviation = (mels.var(1, keepdim=True) + 1e-7).sqrt()
            mels = (mels - mels.mean(1, keepdim=True)) / deviation
        pairs = mels.unfold(1, self.STACKED, self.STACKED)
        return pairs.transpose(2, 3).flatten(2)


def _restore(settings, checkpointing, weights, learning, training):
    """A transformer from its pickle."""
    with torch.random.fork_rng():  # of the random weights
        found = PretrainedTransformer(
            **settings, gradient_checkpointing=checkpointing
        )
    found.load_state_dict(weights)
    for name, parameter in found.named_parameters():
        parameter.requires_grad_(name in learning)
    return found.train(training)


def _check_part(model, part):
    """Says which parts there are if there is none of this name."""
    try:
        model.get_submodule(part)
    except AttributeError:
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"The transformer has no part {part!r} that could be trained. It "
            f"has {names}, and parts of these such as encoder.layers.3"
        ) from None


def _pretrained(source, cache):
    """A pretrained network, and whether it wants normalized waveforms."""
    auto = extra("transformers")
    config = auto.AutoConfig.from_pretrained(source, cache_dir=cache)
    _check_family(config.model_type)
    features = auto.AutoFeatureExtractor.from_pretrained(
        source, cache_dir=cache
    )
    model = auto.AutoModel.from_pretrained(source, cache_dir=cache)
    return model.float(), bool(getattr(features, "do_normalize", False))


def _new(settings):
    """A network with random weights.

    Only settings that the class has itself are taken: the configuration of a
    foreign model must not name code.
    """
    transformers = extra("transformers")
    settings = dict(settings)
    family = _check_family(settings.pop("model_type", None))
    make = getattr(transformers, f"{family}Config")
    unknown = settings.keys() - make().to_dict().keys()
    if unknown:
        raise ValueError(
            f"{family} in transformers {transformers.__version__} has no "
            f"setting {', '.join(sorted(unknown))}. Another version of the "
            "package may have it."
        )
    return getattr(transformers, f"{family}Model")(make(**settings))


def _check_family(model_type):
    """First part of the class names of a network that is known here."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"Expected a transformer of the type {', '.join(FAMILIES)}, found "
            f"{model_type}"
        )
    return FAMILIES[model_type]
