"""A small exported model, for tests of what users do with one."""

import numpy as np
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ssl.exporting import export
from speechbrain_ssl.nnet.branch import Branch

ENCODER = """\
compute_features: !new:speechbrain.lobes.features.Fbank
    sample_rate: !ref <sample_rate>
    n_mels: 40
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 40
    channels: [8, 8, 8, 8, 24]
    attention_channels: 8
    lin_neurons: 6
"""

RUN = """\
# of the run, not of the model
seed: 1
n_mels: 40
width: 8
learning_rate: 0.1
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [!ref <width>, 8, 8, 8, !ref <width> * 3] # small
    lin_neurons: 6
head: !new:speechbrain_ssl.nnet.heads.Prototypes
    dim: 6
    count: 4
"""


def branch_of(text=RUN):
    """The encoder of a YAML, with moved running statistics."""
    torch.manual_seed(0)
    hparams = load_hyperpyyaml(text)
    branch = Branch(
        hparams["compute_features"],
        hparams["mean_var_norm"],
        hparams["embedding_model"],
        hparams.get("head"),
    )
    branch.embed(torch.randn(4, 16000))  # moves the running statistics
    return branch


def export_model(folder, sample_rate=16000):
    """Exports an untrained encoder."""
    text = f"sample_rate: {sample_rate}\n{ENCODER}"
    return export(branch_of(text), text, str(folder))


def write_noise(path, seconds=0.6, rate=16000, seed=0, channels=1):
    """Writes a file of noise; its ending says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(seconds * rate), channels)
    noise = np.random.default_rng(seed).normal(0, 0.1, shape)
    soundfile.write(path, noise, rate)
    return str(path)
