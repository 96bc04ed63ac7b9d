"""Checkpoints: whole or absent, damage passed over, exact random states."""

import builtins
import errno
import json
import logging
import os
import resource
import shutil

import numpy as np
import pytest
import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_ssl import checkpoints
from speechbrain_ssl.checkpoints import (
    MANIFEST,
    AtomicCheckpointer,
    average_of_last,
    find_damage,
    write_manifest,
)
from speechbrain_ssl.random_states import RandomStates


@register_checkpoint_hooks
class Number:
    """Saves one number; ``during_save`` stands for what may go wrong."""

    def __init__(self, value=0, during_save=None):
        self.value = value
        self.during_save = during_save

    @mark_as_saver
    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(self.value))
            file.flush()
            if self.during_save is not None:
                self.during_save()

    @mark_as_loader
    def load(self, path, end_of_epoch):
        with open(path, encoding="utf-8") as file:
            self.value = int(file.read())


@pytest.fixture(autouse=True)
def propagated_logs(monkeypatch):
    """Lets caplog see the records, whatever an experiment set up before."""
    monkeypatch.setattr(logging.getLogger("speechbrain_ssl"), "propagate", True)


@pytest.fixture
def number():
    return Number()


@pytest.fixture
def checkpointer(tmp_path, number):
    return AtomicCheckpointer(
        tmp_path, {"number": number, "model": torch.nn.Linear(3, 2)}
    )


def save(checkpointer, value, **kwargs):
    checkpointer.recoverables["number"].value = value
    return checkpointer.save_checkpoint(**kwargs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full_disk():
    raise OSError(errno.ENOSPC, "No space left on device")


def exit_status_of_child(function):
    """Runs the function in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_newest_checkpoint_comes_back(checkpointer, number):
    save(checkpointer, 1)
    saved = save(checkpointer, 2)
    number.value = 3
    recovered = checkpointer.recover_if_possible()
    assert number.value == 2
    assert recovered.path == saved.path
    assert saved.paramfiles == recovered.paramfiles
    assert saved.meta == recovered.meta


def test_empty_folder_recovers_nothing(checkpointer):
    assert checkpointer.recover_if_possible() is None


def test_manifest_has_size_and_checksum_of_each_file(checkpointer):
    folder = save(checkpointer, 12).path
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert sorted(files) == ["CKPT.yaml", "model.ckpt", "number.ckpt"]
    assert files["number.ckpt"] == {"size": 2, "crc32": 0x4F5344CD}


def test_error_in_a_hook_leaves_no_trace(checkpointer, number, tmp_path):
    save(checkpointer, 1)
    before = names(tmp_path)
    number.during_save = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        checkpointer.save_and_keep_only()
    assert names(tmp_path) == before
    number.during_save = None
    checkpointer.recover_if_possible()
    assert number.value == 1


def test_unknown_object_is_named(checkpointer):
    checkpointer.add_recoverable("table", {})
    with pytest.raises(RuntimeError, match="'table': dict has no save hook"):
        checkpointer.save_checkpoint()


def test_killed_save_is_invisible_and_cleared_away(
    checkpointer, number, tmp_path
):
    save(checkpointer, 1)

    def killed_while_saving():
        number.during_save = lambda: os._exit(9)
        save(checkpointer, 2)

    assert exit_status_of_child(killed_while_saving) == 9
    leftover = [name for name in names(tmp_path) if name[0] == "."]
    assert len(leftover) == 1
    assert len(checkpointer.list_checkpoints()) == 1
    checkpointer.recover_if_possible()
    assert number.value == 1
    assert leftover[0] not in names(tmp_path)


def test_kill_while_deleting_leaves_no_half_checkpoint(
    checkpointer, tmp_path, monkeypatch
):
    save(checkpointer, 1)

    def killed_half_way(folder, **_):
        os.remove(folder / "model.ckpt")
        os._exit(9)

    def child():
        monkeypatch.setattr(shutil, "rmtree", killed_half_way)
        checkpointer.save_and_keep_only()

    assert exit_status_of_child(child) == 9
    assert [c for c in names(tmp_path) if c[0] != "."] == [
        checkpoint.path.name for checkpoint in checkpointer.list_checkpoints()
    ]
    checkpointer.save_and_keep_only()
    assert len(names(tmp_path)) == 1


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace_by_bad_yaml(path):
    path.write_text("a: [1\n b: }")


@pytest.mark.parametrize(
    "file", ["number.ckpt", "model.ckpt", "CKPT.yaml", MANIFEST]
)
@pytest.mark.parametrize("harm", [truncate, os.remove, flip_last_byte])
def test_damaged_newest_is_passed_over_and_named(
    checkpointer, number, caplog, file, harm
):
    save(checkpointer, 1)
    newest = save(checkpointer, 2).path
    harm(newest / file)
    checkpointer.recover_if_possible()
    assert number.value == 1
    (warning,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert str(newest) in warning and f"passed over: {file} " in warning


@pytest.mark.parametrize(
    "text",
    ["a: [1\n b: }", "!!python/tuple [1]", "just text", "unixtime: 1.0\n"],
)
def test_bad_meta_does_not_stop_the_listing(checkpointer, number, caplog, text):
    good = save(checkpointer, 1).path
    bad = save(checkpointer, 2).path
    (bad / "CKPT.yaml").write_text(text)
    write_manifest(bad)
    listed = checkpointer.list_checkpoints()
    assert [checkpoint.path for checkpoint in listed] == [good]
    assert "CKPT.yaml" in caplog.text
    checkpointer.save_and_keep_only()
    assert bad.exists() and not good.exists()


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"files": []}', '{"files": {"a": 1}}']
)
def test_manifest_of_another_form_is_damage(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    assert f"{MANIFEST} cannot be read" in find_damage(tmp_path)


def test_damage_is_told_once(checkpointer, caplog):
    os.remove(save(checkpointer, 1).path / MANIFEST)
    for _ in range(3):
        checkpointer.list_checkpoints()
    assert caplog.text.count("passed over") == 1


def test_all_damaged_is_an_error_not_a_new_start(checkpointer, tmp_path):
    for value in range(2):
        truncate(save(checkpointer, value).path / "model.ckpt")
    flip_last_byte(save(checkpointer, 3).path / "number.ckpt")
    with pytest.raises(RuntimeError, match="No checkpoint in") as error:
        checkpointer.recover_if_possible()
    for name in names(tmp_path):
        assert name in str(error.value)
    assert "number.ckpt has changed" in str(error.value)


def test_predicate_that_excludes_all_is_no_damage(checkpointer):
    truncate(save(checkpointer, 1).path / "model.ckpt")
    save(checkpointer, 2)
    chosen = checkpointer.recover_if_possible(ckpt_predicate=lambda c: False)
    assert chosen is None


def test_checkpoint_of_speechbrain_is_adopted_by_write_manifest(tmp_path):
    number = Number(7)
    own = sb.utils.checkpoints.Checkpointer(tmp_path, {"number": number})
    folder = own.save_checkpoint().path
    assert "write_manifest" in find_damage(folder)
    write_manifest(folder)
    number.value = 0
    AtomicCheckpointer(tmp_path, {"number": number}).recover_if_possible()
    assert number.value == 7


def fail_torch_save(monkeypatch):
    def torch_save(obj, file, **kwargs):
        open(file, "wb").close()
        full_disk()

    monkeypatch.setattr(torch, "save", torch_save)


def fail_open_of_meta(monkeypatch):
    own_open = builtins.open

    def full(file, mode="r", *args, **kwargs):
        if "w" in mode and str(file).endswith("CKPT.yaml"):
            full_disk()
        return own_open(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)


def fail_mkdir(monkeypatch):
    monkeypatch.setattr(
        checkpoints.pathlib.Path, "mkdir", lambda self: full_disk()
    )


def fail_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: full_disk())


@pytest.mark.parametrize(
    "fail", [fail_torch_save, fail_open_of_meta, fail_mkdir, fail_fsync]
)
def test_full_disk_keeps_old_checkpoints_and_goes_on(
    checkpointer, number, tmp_path, caplog, fail
):
    save(checkpointer, 0)
    save(checkpointer, 1)
    before = names(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fail(monkeypatch)
        number.value = 2
        checkpointer.save_and_keep_only()
        assert checkpointer.save_checkpoint() is None
    assert names(tmp_path) == before
    assert checkpointer.failed_saves == 2
    assert "No space left on device" in caplog.text
    assert "Free some space" in caplog.text
    checkpointer.save_and_keep_only()
    assert len(names(tmp_path)) == 1 and names(tmp_path) != before
    number.value = 0
    checkpointer.recover_if_possible()
    assert number.value == 2


@pytest.mark.parametrize("limit", [300, 1000, 3000])
def test_file_size_limit_of_the_system_is_a_failed_save(
    checkpointer, tmp_path, limit
):
    checkpointer.recoverables["model"] = torch.nn.Linear(1000, 2)
    save(checkpointer, 1)
    before = names(tmp_path)

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        checkpointer.save_and_keep_only()
        os._exit(checkpointer.failed_saves + 10)

    assert exit_status_of_child(child) == 11
    assert names(tmp_path) == before


def test_keeps_recent_best_and_one_intra_epoch(checkpointer, number):
    def keep(value, **kwargs):
        number.value = value
        checkpointer.save_and_keep_only(**kwargs)

    def intra_epoch(checkpoint):
        return "intra" in checkpoint.meta

    for value, eer in ((1, 3.0), (2, 1.0), (3, 2.0)):
        keep(value, meta={"EER": eer}, min_keys=["EER"])
    for value in (4, 5):
        keep(
            value,
            meta={"intra": True},
            end_of_epoch=False,
            ckpt_predicate=intra_epoch,
        )
    found = checkpointer.find_checkpoints()
    assert [c.meta.get("EER") for c in found] == [None, 2.0, 1.0]
    assert [c.meta["end-of-epoch"] for c in found] == [False, True, True]
    checkpointer.recover_if_possible(min_key="EER")
    assert number.value == 2
    checkpointer.recover_if_possible()
    assert number.value == 5


def test_not_keeping_recent_is_not_undone_by_an_earlier_call(checkpointer):
    checkpointer.save_and_keep_only(meta={"EER": 3.0})
    for eer in (1.0, 2.0):
        checkpointer.save_and_keep_only(
            meta={"EER": eer}, keep_recent=False, min_keys=["EER"]
        )
    (kept,) = checkpointer.list_checkpoints()
    assert kept.meta["EER"] == 1.0


def test_nan_metric_never_wins(checkpointer, caplog):
    for eer in (0.3, float("nan"), 0.1, np.float64("nan"), 0.2, None):
        checkpointer.save_checkpoint(meta={"EER": eer})
    assert checkpointer.find_checkpoint(min_key="EER").meta["EER"] == 0.1
    assert checkpointer.find_checkpoint(max_key="EER").meta["EER"] == 0.3
    assert "does not compete for the best EER: its value is nan" in caplog.text


def test_newest_checkpoint_survives_a_nan_metric(checkpointer):
    for value, eer in enumerate((0.3, float("nan"), float("nan"))):
        checkpointer.recoverables["number"].value = value
        checkpointer.save_and_keep_only(meta={"EER": eer}, min_keys=["EER"])
    kept = checkpointer.find_checkpoints()
    assert [str(c.meta["EER"]) for c in kept] == ["nan", "0.3"]


def test_any_value_in_meta_can_be_read_back(checkpointer, tmp_path):
    meta = {
        "EER": np.float64(1.5),
        "loss": torch.tensor(2.0),
        "epoch": np.int64(3),
        "shape": (1, 2),
        "rows": np.ones((2, 1)),
        "done": np.bool_(True),
        "name": np.str_("run"),
        "folder": tmp_path,
        "none": None,
        "inner": {"x": torch.tensor([1, 2])},
    }
    saved = checkpointer.save_checkpoint(meta=meta)
    (listed,) = checkpointer.list_checkpoints()
    assert listed.meta == saved.meta
    text = (saved.path / "CKPT.yaml").read_text()
    assert yaml.safe_load(text)["inner"] == {"x": [1, 2]}
    expected = [1.5, 2.0, 3, [1, 2], [[1.0], [1.0]], True, "run", str(tmp_path)]
    found = [listed.meta[key] for key in list(meta)[:8]]
    assert found == expected
    assert [type(x) for x in found] == [type(x) for x in expected]


def test_average_takes_the_last_end_of_epoch_checkpoints(tmp_path):
    model = torch.nn.BatchNorm1d(1)
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    for value, end_of_epoch in ((9, 1), (1, 1), (2, 1), (50, 0), (6, 1)):
        torch.nn.init.constant_(model.weight, value)
        model.num_batches_tracked.fill_(value)
        checkpointer.save_checkpoint(end_of_epoch=bool(end_of_epoch))
    state = average_of_last(checkpointer, "model", 3)
    assert state["weight"].item() == 3.0
    assert state["weight"].dtype == torch.float32
    assert state["num_batches_tracked"].item() == 6
    model.load_state_dict(state)


def test_average_sums_in_float64(tmp_path):
    model = torch.nn.Linear(1, 1).half()
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    for _ in range(3):
        torch.nn.init.constant_(model.weight, 60000.0)
        checkpointer.save_checkpoint()
    state = average_of_last(checkpointer, "model", 3)
    assert state["weight"].item() == torch.tensor(60000.0).half().item()


def test_average_passes_over_damage_and_says_if_there_are_fewer(
    checkpointer, caplog
):
    model = checkpointer.recoverables["model"]
    for value in (1.0, 2.0, 6.0):
        torch.nn.init.constant_(model.weight, value)
        last = checkpointer.save_checkpoint()
    flip_last_byte(last.path / "model.ckpt")
    state = average_of_last(checkpointer, "model", 3)
    assert torch.equal(state["weight"], torch.full((2, 3), 1.5))
    assert "over 2 checkpoints instead of 3" in caplog.text


def test_average_of_nothing_is_an_error(checkpointer):
    with pytest.raises(ValueError, match="has 'model'; there is nothing"):
        average_of_last(checkpointer, "model", 1)


def in_two_processes(rank, folder, results):
    """One process of the test below; stands here to be importable."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2
    )
    seen = {}
    number, states = Number(rank), RandomStates()
    checkpointer = AtomicCheckpointer(
        f"{folder}/save", {"number": number, "random": states}
    )
    torch.manual_seed(rank)
    checkpointer.save_checkpoint(end_of_epoch=False)
    drawn = torch.rand(1)
    number.value = 5
    newest = checkpointer.save_checkpoint()
    assert (newest is None) == (rank == 1)

    def fails():
        raise ValueError("hook of process 0")

    number.during_save = fails
    try:
        checkpointer.save_and_keep_only()
    except Exception as error:
        seen["error"] = f"{type(error).__name__} {error}"
    number.during_save = full_disk
    checkpointer.save_and_keep_only()
    seen["failed"] = checkpointer.failed_saves
    if rank == 0:
        truncate(newest.path / "number.ckpt")
    torch.distributed.barrier()
    chosen = checkpointer.recover_if_possible()
    seen["number"] = number.value
    seen["chosen"] = chosen.path.name
    states.restore_pending()
    seen["random"] = torch.equal(torch.rand(1), drawn)
    number.during_save = None
    checkpointer.save_and_keep_only()
    seen["kept"] = len(checkpointer.list_checkpoints())
    # the other one must have counted before they are damaged
    torch.distributed.barrier()
    if rank == 0:
        for checkpoint in checkpointer.list_checkpoints():
            os.remove(checkpoint.path / "number.ckpt")
    try:
        checkpointer.recover_if_possible()
    except RuntimeError as error:
        seen["all damaged"] = "No checkpoint in" in str(error)
    torch.save(seen, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_save_fail_and_recover_together(tmp_path):
    torch.multiprocessing.start_processes(
        in_two_processes,
        (str(tmp_path), str(tmp_path)),
        nprocs=2,
        start_method="forkserver",
    )
    main, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert main.pop("error") == "ValueError hook of process 0"
    assert other.pop("error") == "RuntimeError ValueError: hook of process 0"
    assert main == other
    chosen = main.pop("chosen")
    assert chosen.startswith("CKPT+")
    assert main == {
        "failed": 1,
        "number": 0,
        "random": True,
        "kept": 1,
        "all damaged": True,
    }


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    message = f"{tmp_path}/file/save cannot be made: .* another output_folder"
    with pytest.raises(OSError, match=message):
        AtomicCheckpointer(tmp_path / "file/save")
