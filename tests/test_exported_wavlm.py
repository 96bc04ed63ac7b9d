"""WavLM with MHFA, exported: stock SpeechBrain loads it with our classes."""

import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.classifiers import EncoderClassifier

from speechbrain_ssl.card import read_card
from speechbrain_ssl.exporting import encoder_hparams, export
from speechbrain_ssl.loading import load_encoder, start_from
from speechbrain_ssl.nnet.branch import Branch
from tests.nnet import tiny_transformer

RUN = """\
compute_features: !new:torch.nn.Identity
mean_var_norm: !new:speechbrain.nnet.containers.LengthsCapableSequential
    none: !new:torch.nn.Identity
wavlm: !new:speechbrain_ssl.nnet.transformer.PretrainedTransformer
    source: {source}
    gradient_checkpointing: True # of the run
embedding_model: !new:speechbrain.nnet.containers.LengthsCapableSequential
    wavlm: !ref <wavlm>
{pooling}
learning_rates: !apply:speechbrain_ssl.nnet.parameters.layerwise_rates
    [!ref <wavlm>, 0.1]
"""
POOLINGS = {
    "mhfa": """\
    pooling: !new:speechbrain_ssl.nnet.mhfa.MHFA
        {layers: 3, width: 32, emb_dim: 6, heads: 2, compression: 4}
""",
    "statistics": """\
    pooling: !new:speechbrain_ssl.nnet.mhfa.StatisticsPooling
        {layers: 3, width: 32, emb_dim: 6, attention_channels: 8}
""",
    "ecapa": """\
    mean: !new:speechbrain_ssl.nnet.mhfa.WeightedLayers {layers: 3}
    ecapa: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
        {input_size: 32, channels: [8, 8, 8, 8, 24], lin_neurons: 6}
""",
}

PROGRAM = """
import sys
class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "speechbrain_ssl":
            raise ModuleNotFoundError(name, name=name)
import torch
from speechbrain.inference.classifiers import EncoderClassifier
sys.meta_path.insert(0, Absent())
try:
    EncoderClassifier.from_hparams(source=sys.argv[2], savedir=None)
except ImportError as error:
    print(error)
del sys.meta_path[0]
wavs, lengths = torch.load(sys.argv[1])
embeddings = []
for folder in sys.argv[2:]:
    model = EncoderClassifier.from_hparams(source=folder, savedir=None)
    embeddings.append(model.encode_batch(wavs, lengths))
torch.save(embeddings, sys.argv[1])
"""


def made(tmp_path, pooling="mhfa", seed=0):
    """A branch with weights that are not those of its source, and its YAML."""
    source = tiny_transformer.write(tmp_path / "source", normalize=seed == 1)
    text = RUN.format(source=source, pooling=POOLINGS[pooling])
    hparams = load_hyperpyyaml(text)
    parts = ("compute_features", "mean_var_norm", "embedding_model")
    branch = Branch(*(hparams[part] for part in parts))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return branch, text


def test_another_process_needs_neither_source_nor_network(tmp_path):
    wavs, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([1.0, 0.6])
    folders, wanted = [], []
    for number, pooling in enumerate(POOLINGS):
        branch, text = made(tmp_path, pooling, seed=number)
        export(branch, text, str(tmp_path / "first"))
        shutil.move(tmp_path / "first", tmp_path / f"é {pooling}")
        folders.append(f"é {pooling}")
        wanted.append(branch.eval().embed(wavs, lengths).detach())
    shutil.rmtree(tmp_path / "source")
    torch.save((wavs, lengths), tmp_path / "wavs.pt")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(empty),
        "OMP_NUM_THREADS": "1",
    }
    # from above by a relative path, and from elsewhere by an absolute one
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "wavs.pt", *folders],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # without this package the error names it
    assert "speechbrain_ssl.nnet.transformer" in done.stdout
    for found, expected in zip(torch.load(tmp_path / "wavs.pt"), wanted):
        assert torch.allclose(found.flatten(1), expected, atol=1e-5)


def test_two_exports_do_not_disturb_one_another(tmp_path):
    wavs = 0.1 * torch.randn(1, 8000)
    models, wanted = [], []
    for seed in range(2):
        branch, text = made(tmp_path, seed=seed)
        folder = export(branch, text, str(tmp_path / f"model{seed}"))
        models.append(EncoderClassifier.from_hparams(folder, savedir=None))
        wanted.append(branch.eval().embed(wavs).detach())
    for model, expected in zip(models, wanted):
        found = model.encode_batch(wavs).flatten(1)
        assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-2)


def test_training_starts_from_an_exported_model(tmp_path):
    branch, text = made(tmp_path, seed=0)
    folder = export(branch, text, str(tmp_path / "model"))
    fresh, _ = made(tmp_path, seed=1)
    start_from(fresh, folder)
    for name, value in branch.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_an_exported_model_can_be_pickled(tmp_path):
    branch, text = made(tmp_path)
    folder = export(branch, text, str(tmp_path / "model"))
    model = EncoderClassifier.from_hparams(folder, savedir=None)
    again = pickle.loads(pickle.dumps(model))
    wavs = 0.1 * torch.randn(1, 8000)
    assert torch.equal(again.encode_batch(wavs), model.encode_batch(wavs))


def test_our_commands_load_the_same_encoder(tmp_path):
    branch, text = made(tmp_path)
    folder = export(branch, text, str(tmp_path / "model"))
    wavs, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([0.7, 1.0])
    stock = EncoderClassifier.from_hparams(folder, savedir=None)
    found = load_encoder(folder).encode_batch(wavs, lengths)
    torch.testing.assert_close(found, stock.encode_batch(wavs, lengths))
    for row, count in ((0, 5600), (1, 8000)):
        alone = stock.encode_batch(wavs[row : row + 1, :count])
        similarity = torch.cosine_similarity(alone[0], found[row])
        assert similarity > 0.9999


def test_the_card_names_what_the_model_needs(tmp_path):
    branch, text = made(tmp_path)
    folder = export(branch, text, str(tmp_path / "model"))
    card = read_card(folder)
    assert "It needs the package speechbrain_ssl" in card.text
    assert "transformers>=4.57" in card.text
    assert card.data.base_model is None  # a folder of ours is no name
    assert "wavlm" in card.data.tags


def test_the_card_names_the_network_of_the_hub(tmp_path):
    branch, text = made(tmp_path)
    text = text.replace(str(tmp_path / "source"), "microsoft/wavlm-base-plus")
    folder = export(branch, text, str(tmp_path / "model"))
    assert read_card(folder).data.base_model == "microsoft/wavlm-base-plus"


@pytest.mark.parametrize(
    "line",
    ["_attn_implementation: a/b", "auto_map: {AutoModel: a/b--c.D}"],
)
def test_settings_that_name_code_are_refused(tmp_path, line):
    branch, text = made(tmp_path)
    folder = export(branch, text, str(tmp_path / "model"))
    path = os.path.join(folder, "hyperparams.yaml")
    with open(path) as file:
        text = file.read()
    start = "model_type: wavlm\n"
    indent = re.search(rf"( +){start}", text)[1]
    with open(path, "w") as file:
        file.write(text.replace(start, f"{start}{indent}{line}\n"))
    with pytest.raises(ValueError, match="has no setting"):
        load_encoder(folder)


def test_the_exported_settings_name_no_path_and_no_run(tmp_path):
    branch, text = made(tmp_path)
    folder = export(branch, text, str(tmp_path / "model"))
    with open(os.path.join(folder, "hyperparams.yaml")) as file:
        written = file.read()
    for word in (str(tmp_path), "learning_rates", "of the run", "!apply"):
        assert word not in written
    assert "hidden_size: 32" in written


def test_a_yaml_with_another_number_of_networks_is_refused(tmp_path):
    _, text = made(tmp_path)
    with pytest.raises(ValueError, match="1 pretrained.*the encoder has 0"):
        encoder_hparams(text)
