"""WavLM as a part of a speaker encoder, through SpeechBrain's wrapper.

It needs ``pip install transformers``. The source of this file goes into
exported models that use it: it may import nothing of this package.
"""

import json
import tempfile

import torch


class WavLM(torch.nn.Module):
    """Hidden states of all layers of WavLM, of which named parts learn.

    S. Chen et al., "WavLM: Large-scale self-supervised pre-training for full
    stack speech processing", IEEE JSTSP 2022
    (https://arxiv.org/abs/2110.13900).

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
    config : dict
        Makes the architecture where there is no ``source``, with random
        weights: what ``architecture`` gives.
    normalize : bool
        Whether waveforms are normalised, with ``config``.

    Raises
    ------
    ValueError
        If there is not one of source and config, or no such part.
    """

    def __init__(
        self,
        source=None,
        save_path="",
        trained=("encoder.layers",),
        gradient_checkpointing=False,
        config=None,
        normalize=False,
    ):
        super().__init__()
        if (source is None) == (config is None):
            raise ValueError("WavLM needs a source or a config, one of them")
        if source is None:
            self.wavlm = _of_config(config, normalize)
        else:
            self.wavlm = _wrapper()(source, save_path, output_all_hiddens=True)
        model = self.wavlm.model
        model.config.layerdrop = 0.0
        self.trained = tuple(trained)
        self._choose(model)
        if gradient_checkpointing:
            # the other kind needs inputs that have a gradient
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.train()

    @property
    def layers(self):
        """The transformer's layers, from the waveform up."""
        return self.wavlm.model.encoder.layers

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
        return self.wavlm(wavs, wav_lens)

    def train(self, mode=True):
        """Sets the mode of the parts that learn; the others only evaluate.

        Arguments
        ---------
        mode : bool
            True to train.

        Returns
        -------
        WavLM
            Itself.
        """
        super().train(mode)
        model = self.wavlm.model
        model.eval()
        for part in self.trained:
            model.get_submodule(part).train(mode)
        return self

    def architecture(self):
        """What makes the same architecture again, without a source.

        Returns
        -------
        dict
            ``config`` and ``normalize``, of plain values.
        """
        config = self.wavlm.model.config.to_diff_dict()
        config = {k: v for k, v in config.items() if k[0] != "_"}
        for name in ("transformers_version", "architectures", "dtype"):
            config.pop(name, None)
        return {
            "config": json.loads(json.dumps(config)),
            "normalize": bool(self.wavlm.normalize_wav),
        }

    def _choose(self, model):
        """Lets the named parts learn, and nothing else."""
        for part in self.trained:
            try:
                model.get_submodule(part)
            except AttributeError:
                names = ", ".join(name for name, _ in model.named_children())
                raise ValueError(
                    f"WavLM has no part {part!r} that could be trained. It "
                    f"has {names}, and parts of these such as encoder.layers.3"
                ) from None
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                any(name.startswith(f"{part}.") for part in self.trained)
            )
        front = model.feature_extractor
        if not any(p.requires_grad for p in front.parameters()):
            # else it asks for gradients of waveforms, and keeps all in memory
            model.freeze_feature_encoder()


def _wrapper():
    """SpeechBrain's class, which needs an extra package."""
    try:
        from speechbrain.integrations.huggingface.wavlm import WavLM as wrapper
    except ImportError as error:
        raise ImportError(
            f"WavLM needs a package that is not there: {error}. Run pip "
            "install transformers."
        ) from error
    return wrapper


def _of_config(config, normalize):
    """SpeechBrain's wrapper around an architecture with random weights."""
    wrapper = _wrapper()
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig

    class OfConfig(wrapper):
        """Looks for no files of weights or of preprocessing."""

        def _from_pretrained(self, source, **settings):
            self.model = self.auto_class.from_config(self.config)

        def load_feature_extractor(self, source, **settings):
            self.feature_extractor = Wav2Vec2FeatureExtractor(
                do_normalize=normalize
            )

    with tempfile.TemporaryDirectory() as folder:
        WavLMConfig(**config).save_pretrained(folder)
        return OfConfig(folder, folder, output_all_hiddens=True)
