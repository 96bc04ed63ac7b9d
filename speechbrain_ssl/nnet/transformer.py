"""Pretrained transformers as a part of a speaker encoder.

WavLM, HuBERT, wav2vec 2.0 and w2v-BERT 2.0, through SpeechBrain's wrappers. It
needs ``pip install transformers``. The source of this file goes into exported
models that use it: it may import nothing of this package.
"""

import json
import os
import tempfile

import torch
from speechbrain.nnet.adapters import LoRA

# linear layers that LoRA adapts. Not those of attention: WavLM's reads their
# weights without calling them, so that an adapter would do nothing there
ADAPTED = ("intermediate_dense", "output_dense")
PARTS = {"config": "config.json", "preprocessor": "preprocessor_config.json"}


class PretrainedTransformer(torch.nn.Module):
    """Hidden states of all layers of a transformer, of which parts learn.

    WavLM: S. Chen et al., IEEE JSTSP 2022 (https://arxiv.org/abs/2110.13900).
    LoRA: E. Hu et al., ICLR 2022 (https://arxiv.org/abs/2106.09685).

    Parts that do not learn stay in evaluation mode, whatever the loop says.
    Layers are never left out at random: the pooling needs the hidden states of
    all, and DDP their gradients.

    Arguments
    ---------
    source : str
        Name on the Hugging Face hub, or a folder in its format.
    save_path : str
        Folder that downloads are kept in.
    trained : list of str
        Parts of the transformer that learn; [] for none.
    gradient_checkpointing : bool
        Whether layers are computed again for the gradient: a third more time,
        a fraction of the memory.
    lora : dict
        ``rank`` and ``alpha`` of adapters of the feed-forward layers in the
        trained parts, which then learn alone; None: the parts learn.
    architecture : dict
        Makes the network where there is no ``source``, with random weights:
        what ``architecture()`` gives.
    sample_rate : int
        Rate of the audio in Hz, which must be 16000.

    Raises
    ------
    ValueError
        If the sample rate is another one, if there is not one of source and architecture, no such part, or
        nothing in the parts that LoRA adapts.
    """

    sample_rate = 16000  # of the audio that all four families learned from

    def __init__(
        self,
        source=None,
        save_path="",
        trained=("encoder.layers",),
        gradient_checkpointing=False,
        lora=None,
        architecture=None,
        sample_rate=16000,
    ):
        super().__init__()
        if sample_rate != self.sample_rate:
            raise ValueError(
                "Pretrained transformers are made for audio at "
                f"{self.sample_rate} Hz, found sample_rate {sample_rate}"
            )
        if (source is None) == (architecture is None):
            raise ValueError("Give a source or an architecture, one of them")
        if source is None:
            self.wrapper = _without_weights(architecture)
            lora = architecture["lora"]
        else:
            self.wrapper = _wrapper(source, save_path)(
                source, save_path, freeze=False, output_all_hiddens=True
            )
        self.lora, self.trained = lora, tuple(trained)
        model = self.wrapper.model
        model.config.layerdrop = 0.0
        for part in self.trained:
            _check_part(model, part)
        if lora:
            self._insert_adapters(**lora)
        self._choose(model)
        if gradient_checkpointing:
            # the other kind needs inputs that have a gradient
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.train()

    @property
    def layers(self):
        """The transformer's layers, from the waveform up."""
        return self.wrapper.model.encoder.layers

    def forward(self, wavs, wav_lens=None):
        """Waveforms to hidden states.

        Arguments
        ---------
        wavs : torch.Tensor
            16 kHz [batch, time].
        wav_lens : torch.Tensor
            Relative lengths [batch].

        Returns
        -------
        torch.Tensor
            [layers + 1, batch, frames, width].
        """
        return self.wrapper(wavs, wav_lens)

    def train(self, mode=True):
        """Sets the mode of the parts that learn; the others only evaluate.

        Arguments
        ---------
        mode : bool
            True to train.

        Returns
        -------
        PretrainedTransformer
            Itself.
        """
        super().train(mode)
        model = self.wrapper.model
        model.eval()
        for part in self.trained:
            model.get_submodule(part).train(mode)
        return self

    def architecture(self):
        """What makes the same network again, without a source.

        Returns
        -------
        dict
            ``architecture``, and the ``trained`` parts, where adapters are.
        """
        config = self.wrapper.model.config
        parts = {
            "config": {
                "model_type": config.model_type,
                **config.to_diff_dict(),
            },
            "preprocessor": self.wrapper.feature_extractor.to_dict(),
            "lora": self.lora,
        }
        for name in ("transformers_version", "architectures", "dtype"):
            parts["config"].pop(name, None)
        plain = json.loads(json.dumps(parts))
        for name in PARTS:  # where it came from, and the like
            plain[name] = {k: v for k, v in plain[name].items() if k[0] != "_"}
        return {"architecture": plain, "trained": list(self.trained)}

    def _insert_adapters(self, rank, alpha=1.0):
        """Puts an adapter around each feed-forward layer of trained parts."""
        model, count = self.wrapper.model, 0
        for part in map(model.get_submodule, self.trained):
            for name, module in list(part.named_modules()):
                parent, _, last = name.rpartition(".")
                if last in ADAPTED:
                    adapter = LoRA(module, rank=rank, alpha=alpha)
                    setattr(part.get_submodule(parent), last, adapter)
                    count += 1
        if not count:
            raise ValueError(
                f"There is no {' or '.join(ADAPTED)} in {self.trained} that "
                "LoRA could adapt"
            )

    def _choose(self, model):
        """Lets the named parts or their adapters learn, and nothing else."""
        starts = tuple(f"{part}." for part in self.trained)
        for name, parameter in model.named_parameters():
            chosen = name.startswith(starts) if starts else False
            if self.lora:
                chosen = chosen and ".adapter_" in name
            parameter.requires_grad_(chosen)
        front = getattr(model, "feature_extractor", None)
        if front and not any(p.requires_grad for p in front.parameters()):
            # else it asks for gradients of waveforms, and keeps all in
            # memory; HuBERT has no public name for this
            front._freeze_parameters()


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


def _wrapper(source, save_path):
    """SpeechBrain's class for a transformer, which needs an extra package."""
    try:
        from speechbrain.integrations.huggingface.w2v_bert import W2VBert
        from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
        from transformers import AutoConfig
    except ImportError as error:
        raise ImportError(
            f"Transformers need a package that is not there: {error}. Run pip "
            "install transformers."
        ) from error
    config = AutoConfig.from_pretrained(source, cache_dir=save_path or None)
    # the latter loads WavLM and HuBERT too
    return W2VBert if config.model_type == "wav2vec2-bert" else Wav2Vec2


def _without_weights(architecture):
    """SpeechBrain's wrapper around a network with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        for part, name in PARTS.items():
            with open(os.path.join(folder, name), "w") as file:
                json.dump(architecture[part], file)

        class WithoutWeights(_wrapper(folder, folder)):
            """Looks for no file of weights."""

            def _from_pretrained(self, source, **settings):
                self.model = self.auto_class.from_config(self.config)

        return WithoutWeights(
            folder, folder, freeze=False, output_all_hiddens=True
        )
