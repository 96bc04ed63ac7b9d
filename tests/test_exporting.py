"""An exported folder is the trained encoder, to stock SpeechBrain too."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ssl.exporting import (
    check_export,
    encoder_hparams,
    export,
    export_run,
    main,
)
from speechbrain_ssl.loading import load_encoder
from tests.models import RUN, branch_of


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


@contextlib.contextmanager
def full_disk():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_temporary_folder_that_is_full_is_named_before_training():
    with full_disk():
        with pytest.raises(OSError, match="to try its export: .* TMPDIR"):
            check_export(branch_of(), RUN)


def test_a_full_disk_is_one_line_and_keeps_the_earlier_model(exported):
    branch, folder = exported
    before = {name: os.stat(f"{folder}/{name}") for name in os.listdir(folder)}
    with full_disk():
        with pytest.raises(OSError, match="MiB are free there") as caught:
            export(branch, RUN, folder)
    assert folder in str(caught.value) and "\n" not in str(caught.value)
    assert before == {
        name: os.stat(f"{folder}/{name}") for name in os.listdir(folder)
    }
    assert os.listdir(os.path.dirname(folder)) == [os.path.basename(folder)]


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


def test_classes_of_other_packages_are_refused():
    text = RUN.replace("speechbrain.lobes.features.Fbank", "mine.features.Loud")
    with pytest.raises(
        ValueError, match="cannot be exported.*features.Loud"
    ) as e:
        encoder_hparams(text)
    assert "--trust" not in str(e.value)  # training has no such option


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


def test_an_export_to_a_link_replaces_what_the_link_leads_to(
    exported, tmp_path
):
    branch, folder = exported
    (tmp_path / "link").symlink_to(folder)
    for _ in range(2):  # the second export met what the first had left
        export(branch, RUN, str(tmp_path / "link"))
    assert sorted(os.listdir(tmp_path)) == ["a model", "link"]
    assert (tmp_path / "link").is_symlink()


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="hyperparams.yaml"):
        export_run(str(tmp_path))


RUN_FILES = """\
save_folder: {place}/save
student: !new:speechbrain_ssl.nnet.branch.Branch
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
teacher: !new:speechbrain_ssl.nnet.teacher.EMATeacher
    student: !ref <student>
    momentum: 0.9
extract_from: {branch}
average_last: {average}
train_annotation: {place}/save/train.csv
checkpointer: !new:speechbrain_ssl.checkpoints.AtomicCheckpointer
    checkpoints_dir: !ref <save_folder>
    recoverables:
        student: !ref <student>
        teacher: !ref <teacher>
"""
# neither modules of a recipe nor files of its data are there any more
ELSEWHERE = """\
prepare: !name:module_of_a_recipe.that_is_not_here
augmentation: !new:speechbrain_ssl.not_here.Augmentation {noise: /gone}
"""


def run_of(folder, value, branch="student", average=1, checkpoints=(0.0,)):
    """A run whose student's output bias is ``value``, its teacher's minus it."""
    text = RUN + RUN_FILES.format(place=folder, branch=branch, average=average)
    hparams = load_hyperpyyaml(text)
    for offset in checkpoints:
        for part, sign in ((hparams["student"], 1), (hparams["teacher"], -1)):
            network = getattr(part, "network", part).embedding_model
            torch.nn.init.constant_(network.fc.conv.bias, sign * value + offset)
        hparams["checkpointer"].save_checkpoint()
    (folder / "hyperparams.yaml").write_text(text + ELSEWHERE)
    rows = "ID,duration,wav\na,1800,a.wav\nb,1800,b.wav\n"
    (folder / "save/train.csv").write_text(rows)
    return folder


def bias_of(model):
    found = load_encoder(model).mods.embedding_model.fc.conv.bias
    assert len(set(found.tolist())) == 1
    return found[0].item()


def test_a_run_that_was_copied_exports_its_own_weights(tmp_path, monkeypatch):
    first = run_of(tmp_path / "first", 1.0)
    shutil.copytree(first, tmp_path / "copy")
    run_of(first, 2.0)  # goes on after it was copied
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    main(["../copy"])
    assert bias_of(tmp_path / "copy/model") == 1.0
    assert not os.listdir() and not (first / "model").exists()
    card = (tmp_path / "copy/model/README.md").read_text()
    assert "2 utterances, 1.0 hours" in card and "| seed | 1 |" in card


def test_a_run_that_was_moved_makes_no_folder_where_it_was(tmp_path):
    run_of(tmp_path / "first", 1.0)
    (tmp_path / "first").rename(tmp_path / "moved")
    export_run(str(tmp_path / "moved"), str(tmp_path / "out"))
    assert bias_of(tmp_path / "out") == 1.0
    assert sorted(os.listdir(tmp_path)) == ["moved", "out"]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"branch": "teacher"}, -3.0),
        ({"checkpoints": (0.0, 1.0)}, 4.0),
        ({"checkpoints": (0.0, 1.0), "average": 2}, 3.5),
    ],
)
def test_the_weights_are_those_that_training_exports(
    tmp_path, settings, expected
):
    run = run_of(tmp_path / "run", 3.0, **settings)
    assert bias_of(export_run(str(run))) == expected


def test_a_run_without_a_checkpoint_is_named(tmp_path):
    run = run_of(tmp_path / "run", 1.0)
    for checkpoint in (run / "save").glob("CKPT*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(SystemExit, match="export: .*no checkpoint yet"):
        main([str(run)])
    shutil.rmtree(run / "save")
    with pytest.raises(SystemExit, match="no checkpoint in save/"):
        main([str(run)])
    assert not (run / "save").exists()


@pytest.mark.parametrize("moment", ["before", "between"])
def test_an_export_that_was_killed_is_done_again(exported, monkeypatch, moment):
    branch, folder = exported
    rename, calls = os.rename, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 1 + (moment == "between"):
            raise KeyboardInterrupt
        rename(*args)

    monkeypatch.setattr(os, "rename", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        export(branch, RUN, folder)
    monkeypatch.undo()
    export(branch, RUN, folder)
    load_encoder(folder)
    assert os.listdir(os.path.dirname(folder)) == [os.path.basename(folder)]
