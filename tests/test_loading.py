"""Encoders from folders, checkpoints and runs, foreign ones included."""

import os
import pathlib

import pytest
import torch
from speechbrain.inference.classifiers import EncoderClassifier

from speechbrain_ssl.checkpoints import AtomicCheckpointer
from speechbrain_ssl.exporting import export
from speechbrain_ssl.loading import continue_run, load_encoder, start_from
from speechbrain_ssl.nnet.face import ClipBranch
from speechbrain_ssl.nnet.teacher import EMATeacher
from tests.models import RUN, branch_of, export_model


@pytest.fixture
def exported(tmp_path):
    """An encoder, and the folder that it was exported to."""
    branch = branch_of()
    return branch, export(branch, RUN, str(tmp_path / "a model"))


@pytest.fixture
def model(tmp_path):
    """An exported folder, to be spoiled."""
    return pathlib.Path(export_model(tmp_path / "model"))


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="The device gpu cannot be used"):
        load_encoder("model", "gpu")


def test_a_training_folder_points_to_its_model(exported, tmp_path):
    branch, _ = exported
    export(branch, RUN, str(tmp_path / "run" / "model"))
    with pytest.raises(FileNotFoundError, match="Did you mean .*model"):
        load_encoder(str(tmp_path / "run"))
    with pytest.raises(FileNotFoundError, match="No such"):
        load_encoder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("kind", ["exported", "student", "teacher", "clips"])
def test_an_encoder_starts_from_an_earlier_training(exported, tmp_path, kind):
    branch, folder = exported
    source = str(tmp_path / f"{kind}.ckpt")
    if kind == "exported":
        source = folder
    elif kind == "student":
        torch.save(branch.state_dict(), source)
    elif kind == "clips":  # has an encoder of faces, too
        clips = ClipBranch(branch, branch_of())
        torch.save(EMATeacher(clips, momentum=0.9).state_dict(), source)
    else:
        torch.save(EMATeacher(branch, momentum=0.9).state_dict(), source)
    fresh = branch_of()
    for parameter in fresh.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    start_from(fresh, source)
    for name, value in branch.embedding_model.state_dict().items():
        assert torch.equal(fresh.embedding_model.state_dict()[name], value)


def test_weights_of_another_encoder_are_refused(exported):
    branch, folder = exported
    branch.embedding_model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="(?s)not of this encoder.*extra"):
        start_from(branch, folder)


def test_a_start_that_is_not_there_is_named(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.ckpt"):
        start_from(exported[0], str(tmp_path / "nothing.ckpt"))


def test_a_run_goes_on_with_its_encoder_and_its_classifier(tmp_path):
    old, head = branch_of(), torch.nn.Linear(6, 4)
    checkpointer = AtomicCheckpointer(
        tmp_path / "save", {"encoder": old, "classifier": head}
    )
    checkpointer.save_checkpoint()
    with torch.no_grad():
        head.bias.fill_(7.0)
    checkpointer.save_checkpoint()
    fresh, new_head = branch_of(), torch.nn.Linear(6, 4)
    with torch.no_grad():
        next(fresh.parameters()).fill_(0.5)
    continue_run(fresh, new_head, str(tmp_path))
    for name, value in old.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    assert torch.equal(new_head.bias, head.bias)
    with pytest.raises(ValueError, match="not of this classifier"):
        continue_run(fresh, torch.nn.Linear(6, 5), str(tmp_path))


def test_a_run_that_cannot_go_on_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in save/"):
        continue_run(branch_of(), torch.nn.Linear(6, 4), str(tmp_path))
    assert os.listdir(tmp_path) == []
    AtomicCheckpointer(
        tmp_path / "save", {"student": branch_of()}
    ).save_checkpoint()
    with pytest.raises(FileNotFoundError, match="no encoder.ckpt"):
        continue_run(branch_of(), torch.nn.Linear(6, 4), str(tmp_path))


def add(model, text):
    path = model / "hyperparams.yaml"
    path.write_text(path.read_text() + text)


def test_the_encoder_is_that_of_stock_speechbrain(model):
    wavs = torch.randn(2, 8000)
    lengths = torch.tensor([1.0, 0.5])
    stock = EncoderClassifier.from_hparams(str(model), savedir=None)
    found = load_encoder(str(model))
    expected = stock.encode_batch(wavs, lengths)
    torch.testing.assert_close(found.encode_batch(wavs, lengths), expected)
    assert found.audio_normalizer.sample_rate == 16000
    assert not any(p.requires_grad for p in found.mods.parameters())


def test_statistics_of_the_features_are_loaded_from_the_folder(model):
    yaml = model / "hyperparams.yaml"
    text = yaml.read_text().replace("norm_type: sentence", "norm_type: global")
    text = text.replace(
        "    loadables:\n",
        "    paths: {normalizer: far/away/normalizer.ckpt}\n"
        "    loadables:\n        normalizer: !ref <mean_var_norm>\n",
    )
    yaml.write_text(text)
    torch.save(
        {
            "count": 10,
            "glob_mean": torch.full((40,), 3.0),
            "glob_std": torch.full((40,), 2.0),
            "spk_dict_mean": {},
            "spk_dict_std": {},
            "spk_dict_count": {},
        },
        model / "normalizer.ckpt",
    )
    found = load_encoder(str(model)).mods.mean_var_norm
    assert found.glob_mean.tolist() == [3.0] * 40


@pytest.mark.parametrize(
    "text, tag",
    [
        ("x: !apply:os.system [touch pwned]", "!apply:os.system"),
        ("x: [{y: !new:subprocess.Popen [[touch, pwned]]}]", "Popen"),
        ("x: !!python/object/apply:os.system [touch pwned]", "!!python/obj"),
        ("x: !include:other.yaml", "!include:other.yaml"),
        ("x: (!!python/object/apply:os.system [touch pwned])", "no tuple"),
    ],
)
def test_code_in_a_foreign_folder_does_not_run(model, text, tag, monkeypatch):
    monkeypatch.chdir(model)
    (model / "other.yaml").write_text("y: !apply:os.system [touch pwned]\n")
    add(model, f"\n{text}\n")
    with pytest.raises(ValueError, match="hyperparams.yaml, line") as error:
        load_encoder(str(model))
    assert tag in str(error.value)
    assert not (model / "pwned").exists()


@pytest.mark.parametrize("rate", ["0", "-1", "1.5", "1e9", "true", "[1]"])
def test_a_sample_rate_that_no_audio_has_is_named(model, rate):
    path = model / "hyperparams.yaml"
    start, end = path.read_text().split("audio_normalizer:")
    end = end.replace("sample_rate: 16000", f"sample_rate: {rate}")
    path.write_text(f"{start}audio_normalizer:{end}")
    with pytest.raises(ValueError, match="yaml.* whole sample_rate from 1000"):
        load_encoder(str(model))


def test_features_for_another_rate_than_the_audio_are_refused(model):
    path = model / "hyperparams.yaml"
    start, end = path.read_text().split("audio_normalizer:")
    end = end.replace("sample_rate: 16000", "sample_rate: 8000")
    path.write_text(f"{start}audio_normalizer:{end}")
    with pytest.raises(ValueError, match="8000, but .* built for 16000 Hz"):
        load_encoder(str(model))


def test_python_files_of_a_foreign_folder_are_not_imported(model):
    (model / "custom.py").write_text("raise SystemExit('imported')\n")
    add(model, "\nx: !new:custom.Encoder\n")
    with pytest.raises(ValueError, match="--trust custom.Encoder"):
        load_encoder(str(model))


def test_a_module_that_the_user_trusts_may_be_named(model, monkeypatch):
    folder = model.parent / "plugin"
    folder.mkdir()
    (folder / "mine_for_tests.py").write_text(
        "from speechbrain.lobes.features import Fbank as Theirs\n"
        "class Fbank(Theirs):\n    pass\n"
    )
    monkeypatch.syspath_prepend(folder)
    yaml = model / "hyperparams.yaml"
    name = "mine_for_tests.Fbank"
    yaml.write_text(
        yaml.read_text().replace("speechbrain.lobes.features.Fbank", name)
    )
    with pytest.raises(ValueError, match="--trust mine_for_tests.Fbank"):
        load_encoder(str(model))
    found = load_encoder(str(model), trust=["mine_for_tests"])
    assert type(found.mods.compute_features).__module__ == "mine_for_tests"


class Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    "load", [load_encoder, lambda f: start_from(branch_of(), f)]
)
def test_a_pickle_in_the_place_of_weights_does_not_run(
    model, load, monkeypatch
):
    monkeypatch.chdir(model)
    torch.save({"weight": Evil()}, model / "embedding_model.ckpt")
    with pytest.raises(ValueError, match="tensors only.*could run code"):
        load(str(model))
    assert not (model / "pwned").exists()


def test_paths_and_hooks_of_a_foreign_pretrainer_are_not_followed(model):
    add(
        model,
        "    paths: {embedding_model: https://example.org/evil.ckpt}\n"
        "    conditions: {embedding_model: False}\n",
    )
    expected = torch.load(model / "embedding_model.ckpt", weights_only=True)
    found = load_encoder(str(model)).mods.embedding_model.state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_weights_of_another_network_are_named(model):
    torch.save({"weight": torch.zeros(3)}, model / "embedding_model.ckpt")
    with pytest.raises(ValueError, match="not of this encoder"):
        load_encoder(str(model))


@pytest.mark.parametrize("share", [0, 0.5, 0.98])
def test_weights_that_are_cut_off_are_named(model, share):
    path = model / "embedding_model.ckpt"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="embedding_model.ckpt .*damaged"):
        load_encoder(str(model))


def test_options_of_a_run_in_a_foreign_yaml_are_ignored(model):
    add(model, "\njit: True\ndevice: nowhere\n")
    assert load_encoder(str(model)).device == "cpu"


def test_a_folder_laid_out_as_on_the_hub_is_loaded_without_network(model):
    yaml = model / "hyperparams.yaml"
    wavs = torch.randn(1, 8000)
    expected = load_encoder(str(model)).encode_batch(wavs)
    encoder = yaml.read_text().split("audio_normalizer:")[0]
    yaml.write_text(
        f"""\
pretrained_path: someone/spkrec
out_n_neurons: 7
{encoder}
mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 6
    out_neurons: !ref <out_n_neurons>
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
        label_encoder: !ref <pretrained_path>/label_encoder.txt
"""
    )
    found = load_encoder(str(model))
    torch.testing.assert_close(found.encode_batch(wavs), expected)
