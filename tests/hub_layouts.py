"""Tiny models in the layouts of the Hugging Face hub.

The YAMLs have the structure of ``speechbrain/spkrec-ecapa-voxceleb``,
``spkrec-resnet-voxceleb`` and ``spkrec-xvect-voxceleb``, with smaller numbers.
"""

import pathlib

import torch
from hyperpyyaml import load_hyperpyyaml

HEAD = """\
# Feature parameters
n_mels: {n_mels}

# Pretrain folder (HuggingFace)
pretrained_path: speechbrain/{name}

# Output parameters
out_n_neurons: 5

# Model params
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>

mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False

"""
TAIL = """
mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    std_norm: False

modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
    classifier: !ref <classifier>

label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        mean_var_norm_emb: !ref <mean_var_norm_emb>
        classifier: !ref <classifier>
        label_encoder: !ref <label_encoder>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
        mean_var_norm_emb: !ref <pretrained_path>/mean_var_norm_emb.ckpt
        classifier: !ref <pretrained_path>/classifier.ckpt
        label_encoder: !ref <pretrained_path>/label_encoder.txt
"""
NETWORKS = {
    "spkrec-ecapa-voxceleb": (
        80,
        """\
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [8, 8, 8, 8, 24]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    lin_neurons: 12

classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 12
    out_neurons: !ref <out_n_neurons>
""",
    ),
    "spkrec-resnet-voxceleb": (
        80,
        """\
embedding_model: !new:speechbrain.lobes.models.ResNet.ResNet
    input_size: !ref <n_mels>
    channels: [4, 4, 8, 8]
    strides: [1, 2, 2, 2]
    block_sizes: [1, 1, 1, 1]
    lin_neurons: 12

classifier: !new:speechbrain.lobes.models.ResNet.Classifier
    input_size: 12
    lin_neurons: 12
    out_neurons: !ref <out_n_neurons>
""",
    ),
    "spkrec-xvect-voxceleb": (
        24,
        """\
embedding_model: !new:speechbrain.lobes.models.Xvector.Xvector
    in_channels: !ref <n_mels>
    activation: !name:torch.nn.LeakyReLU
    tdnn_blocks: 5
    tdnn_channels: [8, 8, 8, 8, 24]
    tdnn_kernel_sizes: [5, 3, 3, 1, 1]
    tdnn_dilations: [1, 2, 3, 1, 1]
    lin_neurons: 12

classifier: !new:speechbrain.lobes.models.Xvector.Classifier
    input_shape: [null, null, 12]
    activation: !name:torch.nn.LeakyReLU
    lin_blocks: 1
    lin_neurons: 12
    out_neurons: !ref <out_n_neurons>
""",
    ),
}
CARD = """\
---
language: en
license: apache-2.0
tags: [speechbrain, embeddings]
---

# Speaker verification
"""


def write(folder, name="spkrec-ecapa-voxceleb", classifier=True):
    """Writes a model with random weights and moved statistics."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    n_mels, network = NETWORKS[name]
    text = HEAD.format(n_mels=n_mels, name=name) + network + TAIL
    torch.manual_seed(0)
    hparams = load_hyperpyyaml(text)
    features = hparams["compute_features"](torch.randn(4, 16000))
    hparams["embedding_model"](features, torch.ones(4))
    (folder / "hyperparams.yaml").write_text(text)
    (folder / "README.md").write_text(CARD)
    names = ["embedding_model", *(["classifier"] if classifier else [])]
    for part in names:
        path = folder / f"{part}.ckpt"
        torch.save(hparams[part].state_dict(), path)
    if classifier:
        torch.save(
            {
                "count": 1,
                "glob_mean": torch.zeros(12),
                "glob_std": torch.ones(12),
                "spk_dict_mean": {},
                "spk_dict_std": {},
                "spk_dict_count": {},
            },
            folder / "mean_var_norm_emb.ckpt",
        )
        lines = [f"'id{n:05d}' => {n}" for n in range(5)]
        lines += ["=" * 16, "'starting_index' => 0"]
        (folder / "label_encoder.txt").write_text("\n".join(lines) + "\n")
    return str(folder)
