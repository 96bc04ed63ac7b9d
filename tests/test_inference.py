"""An exported folder is the trained encoder, to stock SpeechBrain too."""

import os
import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ssl.checkpoints import AtomicCheckpointer
from speechbrain_ssl.inference import (
    continue_run,
    encoder_hparams,
    export,
    export_run,
    load_encoder,
    read_threshold,
    start_from,
    suggest_threshold,
)
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.teacher import EMATeacher

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


@pytest.fixture
def exported(tmp_path):
    branch = branch_of()
    return branch, export(branch, RUN, str(tmp_path / "a model"))


def test_embeddings_equal_those_of_the_trained_encoder(exported):
    branch, folder = exported
    wavs = torch.randn(2, 12345) * 0.1
    found = load_encoder(folder).encode_batch(wavs)
    expected = branch.eval().embed(wavs)
    assert torch.allclose(found.squeeze(1), expected, atol=1e-5)


def test_training_mode_is_left_as_it_was(exported):
    assert exported[0].training


def test_only_what_makes_the_encoder_is_written(exported):
    with open(os.path.join(exported[1], "hyperparams.yaml")) as file:
        text = file.read()
    assert "speechbrain_ssl" not in text and "learning_rate" not in text
    assert "of the run" not in text and "small" not in text
    assert sorted(os.listdir(exported[1])) == [
        "README.md",
        "embedding_model.ckpt",
        "hyperparams.yaml",
    ]


def test_another_process_loads_it_without_this_package_and_network(exported):
    branch, folder = exported
    torch.save(torch.randn(1, 16000) * 0.1, os.path.join(folder, "wav.pt"))
    program = """
import sys
class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "speechbrain_ssl":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.speaker import SpeakerRecognition
folder = sys.argv[1]
for interface in (EncoderClassifier, SpeakerRecognition):
    model = interface.from_hparams(source=folder, savedir=None)
    embedding = model.encode_batch(torch.load(folder + "/wav.pt"))
torch.save(embedding, folder + "/embedding.pt")
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    here = os.path.dirname(folder)
    subprocess.run(
        [sys.executable, "-c", program, folder],
        check=True,
        env=environment,
        cwd=here,
        capture_output=True,
    )
    wav = torch.load(os.path.join(folder, "wav.pt"))
    found = torch.load(os.path.join(folder, "embedding.pt")).flatten(1)
    assert torch.allclose(found, branch.eval().embed(wav), atol=1e-5)
    assert os.listdir(here) == [os.path.basename(folder)]


def test_a_suggested_threshold_replaces_the_one_before(exported):
    folder = exported[1]
    for threshold in (0.5, 0.25):
        summary = {"threshold": threshold, "EER": 12.345}
        suggest_threshold(folder, summary, "wild.txt")
    with open(os.path.join(folder, "README.md")) as file:
        text = file.read()
    assert text.count("## Threshold") == 1 and "threshold=0.2500" in text
    assert "12.3" in text and "wild.txt" in text


def test_programs_find_the_threshold_in_a_file_of_its_own(exported):
    folder = exported[1]
    assert read_threshold(folder) is None
    summary = {"threshold": 0.25, "EER": 12.5, "trials": 3}
    suggest_threshold(folder, summary, "wild.txt")
    assert read_threshold(folder) == {
        "threshold": 0.25,
        "EER": 12.5,
        "trials": "wild.txt",
    }
    load_encoder(folder)
    # another model has another threshold
    export(exported[0], RUN, folder)
    assert read_threshold(folder) is None


@pytest.mark.parametrize("text", ["{}", "[1]", '{"threshold": "high"}', "no"])
def test_a_spoiled_threshold_is_named(exported, text):
    path = os.path.join(exported[1], "threshold.json")
    with open(path, "w") as file:
        file.write(text)
    with pytest.raises(ValueError, match="threshold.json should hold"):
        read_threshold(exported[1])


def test_the_readme_has_the_facts_of_the_training(tmp_path):
    folder = export(
        branch_of(),
        RUN,
        str(tmp_path / "model"),
        notes="For {braces}.",
        facts={"data": "3 utterances, 1.0 hours", "seed": "7"},
    )
    with open(os.path.join(folder, "README.md")) as file:
        text = file.read()
    assert text.startswith("---\nlibrary_name: speechbrain\n")
    assert "| data | 3 utterances, 1.0 hours |\n| seed | 7 |\n\n" in text
    assert "For {braces}." in text and 'source="model"' in text


def test_classes_of_other_packages_are_refused():
    text = RUN.replace("speechbrain.lobes.features.Fbank", "mine.features.Loud")
    with pytest.raises(ValueError, match="mine.features.Loud"):
        encoder_hparams(text)


def test_a_missing_part_is_named():
    with pytest.raises(KeyError, match="mean_var_norm"):
        encoder_hparams(RUN.replace("mean_var_norm:", "normalisation:"))


def test_parts_that_are_referred_to_come_along():
    text = (
        RUN.replace("embedding_model: !new:", "inner: !new:")
        + "embedding_model: !ref <inner>\n"
    )
    written = encoder_hparams(text)
    assert "inner" not in written
    loaded = load_hyperpyyaml(written)
    assert loaded["modules"]["embedding_model"].fc.conv.out_channels == 6


def test_weights_of_a_wrapped_encoder_are_refused(tmp_path):
    branch = branch_of()
    branch.embedding_model = torch.nn.ModuleDict(
        {"module": branch.embedding_model}
    )
    with pytest.raises(ValueError, match="DDP"):
        export(branch, RUN, str(tmp_path / "model"))


def test_hparams_of_another_encoder_leave_nothing_behind(tmp_path):
    with pytest.raises((ValueError, RuntimeError)):
        export(
            branch_of(),
            RUN.replace("width: 8", "width: 16"),
            str(tmp_path / "model"),
        )
    with pytest.raises(ValueError, match="other embeddings"):
        export(
            branch_of(),
            RUN.replace("std_norm: False", "std_norm: True"),
            str(tmp_path / "model"),
        )
    assert os.listdir(tmp_path) == []


def test_an_export_is_replaced_but_nothing_else(exported, tmp_path):
    branch, folder = exported
    with torch.no_grad():
        next(branch.parameters()).add_(1.0)
    export(branch, RUN, folder)
    wavs = torch.randn(1, 16000)
    found = load_encoder(folder).encode_batch(wavs).flatten(1)
    assert torch.allclose(found, branch.eval().embed(wavs), atol=1e-5)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="name another folder"):
        export(branch, RUN, str(tmp_path / "mine"))


def test_a_training_folder_points_to_its_model(exported, tmp_path):
    branch, _ = exported
    export(branch, RUN, str(tmp_path / "run" / "model"))
    with pytest.raises(FileNotFoundError, match="Did you mean .*model"):
        load_encoder(str(tmp_path / "run"))
    with pytest.raises(FileNotFoundError, match="No such"):
        load_encoder(str(tmp_path / "nowhere"))


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="hyperparams.yaml"):
        export_run(str(tmp_path))


def test_a_run_is_exported_away_from_its_recipe(tmp_path):
    text = (
        RUN
        + f"""\
student: !new:speechbrain_ssl.nnet.branch.Branch
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
extract_from: student
checkpointer: !new:speechbrain_ssl.checkpoints.AtomicCheckpointer
    checkpoints_dir: {tmp_path}/save
    recoverables:
        student: !ref <student>
prepare: !name:module_of_a_recipe.that_is_not_here
"""
    )
    (tmp_path / "hyperparams.yaml").write_text(text)
    hparams = load_hyperpyyaml(text, {"prepare": None})
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        export_run(str(tmp_path))
    hparams["checkpointer"].save_checkpoint()
    encoder = load_encoder(export_run(str(tmp_path)))
    wavs = torch.randn(2, 8000)
    branch = hparams["student"].eval()
    with torch.no_grad():
        wanted = branch.embed(wavs)
    found = encoder.encode_batch(wavs)[:, 0]
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["exported", "student", "teacher"])
def test_an_encoder_starts_from_an_earlier_training(exported, tmp_path, kind):
    branch, folder = exported
    source = str(tmp_path / f"{kind}.ckpt")
    if kind == "exported":
        source = folder
    elif kind == "student":
        torch.save(branch.state_dict(), source)
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
    with pytest.raises(ValueError, match="classifier of .* is another one"):
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
