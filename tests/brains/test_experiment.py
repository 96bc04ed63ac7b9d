"""What training scripts share: checks, the folder of a run, its record."""

import json
import logging

import pytest
import torch
from speechbrain.utils.run_opts import RunOptions

from speechbrain_ssl.brains import experiment
from speechbrain_ssl.checkpoints import AtomicCheckpointer
from speechbrain_ssl.options import OptionsError

YAML = """\
seed: 1
data_folder: audio
number_of_epochs: 2
batch_size: 4
net: !new:torch.nn.Linear {in_features: 2, out_features: 1}
"""


@pytest.fixture
def open_run(tmp_path):
    """Opens a run of the YAML above with changes, and records it if asked."""
    file = tmp_path / "train.yaml"
    file.write_text(YAML)

    def open_run(overrides="", record=True, **options):
        folder, run_opts = str(tmp_path / "run"), RunOptions(**options)
        with experiment.open_run(folder, str(file), overrides, run_opts) as run:
            if record:
                experiment._record(run)
            return run

    return open_run


def test_a_rule_that_does_not_hold_is_the_message():
    experiment.check_rules((True, "first"), (1, "second"))
    with pytest.raises(OptionsError, match="^second$"):
        experiment.check_rules((True, "first"), (None, "second"), (0, "third"))


def test_what_a_checkpoint_lacks_is_named(tmp_path):
    parts = {"net": torch.nn.Linear(2, 1), "pool": torch.nn.ReLU()}
    checkpointer = AtomicCheckpointer(tmp_path)
    with pytest.raises(OptionsError, match="Add the line net: !ref <net>"):
        experiment.check_recoverables(checkpointer, parts)
    checkpointer.add_recoverable("student", parts["net"])
    experiment.check_recoverables(checkpointer, parts)  # a ReLU has no state


def test_a_run_is_recorded_with_its_yaml(open_run, tmp_path):
    open_run("batch_size: 8")
    record = json.loads((tmp_path / "run/settings.json").read_text())
    assert record["batch_size"] == 8 and record["max_grad_norm"] == 5.0
    assert record["data_folder"].startswith("/")
    text = (tmp_path / "run/hyperparams.yaml").read_text()
    assert "batch_size: 8" in text and "# yamllint disable" in text


def test_the_copy_of_a_read_only_script_can_be_replaced(
    open_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["/opt/recipe/train_ssl.py"])
    open_run()  # there is no copy yet
    copy = tmp_path / "run/train_ssl.py"
    copy.touch()
    copy.chmod(0o444)
    open_run()
    assert copy.stat().st_mode & 0o777 == 0o644


def test_a_device_that_cannot_be_used_is_named(open_run):
    with pytest.raises(ValueError, match="The device gpu cannot be used"):
        open_run(device="gpu")


def test_settings_that_make_another_experiment_are_refused(open_run):
    open_run()
    with pytest.raises(ValueError, match="batch_size: was 4, is 8"):
        open_run("batch_size: 8")
    with pytest.raises(ValueError, match="net"):
        open_run("net: !new:torch.nn.Linear {in_features: 2, out_features: 3}")
    with pytest.raises(ValueError, match="max_grad_norm: was 5.0, is 1.0"):
        open_run(max_grad_norm=1.0)


def test_another_optimizer_is_refused_but_not_its_arguments(open_run):
    open_run("opt_class: !name:torch.optim.SGD {lr: 0.1}")
    open_run("opt_class: !name:torch.optim.SGD {lr: 0.2}")
    with pytest.raises(ValueError, match="opt_class: was .*SGD.* is .*AdamW"):
        open_run("opt_class: !name:torch.optim.AdamW {lr: 0.2}")


def test_settings_that_may_change_are_logged(open_run, caplog):
    open_run()
    with caplog.at_level(logging.INFO):
        open_run("number_of_epochs: 3")
    assert "number_of_epochs: was 2, is 3" in caplog.text
