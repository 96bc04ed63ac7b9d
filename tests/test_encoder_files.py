"""Encoders of hparams/ take the place of a recipe's, learn and are exported."""

import pathlib
import re

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.classifiers import EncoderClassifier

from speechbrain_ssl.exporting import export
from speechbrain_ssl.loading import load_encoder
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.options import OptionsError, load_experiment, resolved
from tests.nnet import tiny_transformer

ROOT = pathlib.Path(__file__).parents[1]
FILES = {path.stem: path for path in sorted(ROOT.glob("hparams/*.yaml"))}
RECIPES = {
    path.stem: path
    for path in sorted(ROOT.glob("recipes/AudioFolder/SSL/hparams/train_*"))
    # those of audio alone
    if not path.stem.endswith(("_face", "_av"))
}
TINY = """\
sample_rate: 8000 # not that of the training
n_mels: 12
emb_dim: 10
mels: !ref <n_mels>
compute_features: !new:speechbrain.lobes.features.Fbank
    sample_rate: !ref <sample_rate>
    n_mels: !ref <mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
net: !new:speechbrain_ssl.nnet.encoders.campplus.CAMPlusPlus
    input_size: !ref <mels>
    lin_neurons: !ref <emb_dim>
    layers: [1, 1, 1]
    growth: 4
    bottleneck: 4
    channels: 8
    front_channels: 2
embedding_model: !new:speechbrain.nnet.containers.LengthsCapableSequential
    net: !ref <net>
modules: {unused: 1}
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def load(recipe, tmp_path, *flags):
    """Settings of a recipe's YAML, and its text with all changes."""
    given = [f"--data_folder={tmp_path}", f"--output_folder={tmp_path}/out"]
    if "augmentation" in recipe.read_text():
        given.append("--augmentation=null")
    if "\npseudo_labels:" in recipe.read_text():
        given.append(f"--pseudo_labels={tmp_path}/labels.csv")
    argv = [str(recipe), *given, *flags]
    file, _, hparams, overrides = load_experiment(argv)
    return hparams, resolved(file, overrides)


@pytest.mark.parametrize("name", RECIPES)
def test_every_training_yaml_takes_an_encoder_file(name, tiny, tmp_path):
    if name == "train_lmft":
        pytest.skip("its encoder is that of the run that it continues")
    flags = ["--encoder_file", tiny]
    if name == "train_supervised":
        flags.append(f"--speakers={tmp_path}/speakers.csv")
    hparams, _ = load(RECIPES[name], tmp_path, *flags)
    branch = hparams.get("student") or hparams["encoder"]
    assert branch.embedding_model.net is hparams["net"]
    assert hparams["sample_rate"] == 16000
    views = branch([torch.randn(4, 8000), torch.randn(4, 8000)])
    assert views.embedding.shape == (2, 4, 10)
    if "objective" in hparams:
        teacher = hparams.get("teacher")
        other = (
            views
            if teacher is None
            else teacher([torch.randn(4, 8000), torch.randn(4, 8000)])
        )
        assert other.projection.shape == views.projection.shape


def test_the_command_line_changes_an_encoder_file(tiny, tmp_path):
    hparams, text = load(
        RECIPES["train_moco"],
        tmp_path,
        f"--encoder_file={tiny}",
        *("--emb_dim", "6", "--net", "{growth: 3}"),
    )
    shape = hparams["embedding_model"].net.embedding[0].weight.shape
    assert shape[0] == 6
    assert hparams["objective"].queue.shape[-1] == 6
    layer = hparams["net"].blocks[0][0]
    assert layer.local.out_channels == 3
    assert "train_ecapa" not in text and "CAMPlusPlus" in text


def test_nothing_of_the_encoder_before_is_kept(tmp_path):
    """Settings that the file leaves out are the defaults of the class."""
    path = tmp_path / "encoder.yaml"
    text = FILES["ecapa_c1024"].read_text()
    path.write_text(re.sub(r".*(attention_channels|hop_length).*\n", "", text))
    recipe = RECIPES["train_moco"]
    assert "hop_length: 16" in recipe.read_text()
    given = (
        f"--encoder_file={path}",
        "--embedding_model={channels: [8, 8, 8, 8, 24]}",
    )
    hparams, text = load(recipe, tmp_path, *given)
    assert hparams["compute_features"].compute_STFT.hop_length == 160
    assert hparams["embedding_model"].asp.conv.conv.weight.shape[1] == 128
    assert "hop_length" not in text


def test_an_encoder_file_of_the_package_is_known_by_its_name(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, named = load(RECIPES["train_moco"], tmp_path, "--encoder_file=campplus")
    path = f"--encoder_file={FILES['campplus']}"
    assert named == load(RECIPES["train_moco"], tmp_path, path)[1]
    # a file of that name comes first
    (tmp_path / "campplus").write_text(TINY)
    _, own = load(RECIPES["train_moco"], tmp_path, "--encoder_file=campplus")
    assert "growth: 4" in own


def test_wrong_encoder_files_are_named(tiny, tmp_path):
    recipe, other = RECIPES["train_moco"], tmp_path / "other.yaml"
    other.write_text("emb_dim: 3\n")
    broken = tmp_path / "broken.yaml"
    broken.write_text(TINY.replace("mels: !ref <n_mels>", ""))
    for flags, message in (
        (["--encoder_file"], "needs a value"),
        (["--encoder_file", tiny, f"--encoder_file={tiny}"], "given twice"),
        (["--encoder_file", str(other)], "other.yaml has no compute_features"),
        (["--encoder_file", str(broken)], "refers to 'mels', but has none"),
        (["--encoder_file", "no_encoder"], "is no file and none of campplus"),
    ):
        with pytest.raises(OptionsError, match=message):
            load(recipe, tmp_path, *flags)
    verify = ROOT / "recipes/AudioFolder/SSL/hparams/verify.yaml"
    with pytest.raises(OptionsError, match="verify.yaml has no compute_feat"):
        load_experiment([str(verify), "--encoder_file", tiny])


@pytest.mark.parametrize("name", FILES)
def test_an_encoder_learns_and_its_export_gives_the_same_embeddings(
    name, tmp_path
):
    text, flags = FILES[name].read_text(), []
    if "transformer_source" in text:
        pytest.importorskip("transformers")
        source = tiny_transformer.write(tmp_path / "source")
        changes = f"{{layers: {tiny_transformer.LAYERS + 1}, width: "
        changes += f"{tiny_transformer.WIDTH}}}"
        flags = [f"--transformer_source={source}", f"--pooling={changes}"]
    torch.manual_seed(0)
    hparams, text = load(
        RECIPES["train_simclr"],
        tmp_path,
        f"--encoder_file={FILES[name]}",
        *("--emb_dim=16", *flags),
    )
    student = hparams["student"]
    wavs = [torch.randn(2, 6000) for _ in range(2)]
    loss, _ = hparams["objective"](student(wavs), None, 0.0)
    loss.backward()
    grads = [
        p.grad for p in student.embedding_model.parameters() if p.requires_grad
    ]
    assert any(g is not None and g.abs().sum() > 0 for g in grads)
    student.eval()
    folder = export(student, text, str(tmp_path / "model"))
    expected = student.embed(wavs[0])
    found = load_encoder(folder).encode_batch(wavs[0])
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-3, rtol=1e-3)
    stock = EncoderClassifier.from_hparams(source=folder, savedir=None)
    torch.testing.assert_close(
        stock.encode_batch(wavs[0]).flatten(1), expected, atol=1e-3, rtol=1e-3
    )
    card = pathlib.Path(folder, "README.md").read_text()
    needs_us = (
        "speechbrain_ssl."
        in pathlib.Path(folder, "hyperparams.yaml").read_text()
    )
    assert needs_us == ("needs the package speechbrain_ssl" in card)
    assert needs_us == (name in ("campplus", "transformer_mhfa"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_alone_describes_a_model_of_stock_speechbrain(name):
    text = FILES[name].read_text()
    if "transformer_source" in text:
        pytest.skip("it would be downloaded")
    found = load_hyperpyyaml(text)
    branch = Branch(*(found["modules"][key] for key in found["modules"]))
    branch.eval()
    shape = branch.embed(torch.randn(1, 8000)).shape
    assert shape == (1, found["emb_dim"])
