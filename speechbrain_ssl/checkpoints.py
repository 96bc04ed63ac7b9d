"""Checkpoints that are whole or not there, and that come back bit by bit.

``AtomicCheckpointer`` takes the place of SpeechBrain's ``Checkpointer`` in the
YAML. It writes a checkpoint under another name, with the size and the checksum
of each file, and gives it its ``CKPT+...`` name in one step; a damaged one is
passed over; a full disk does not end the training.
"""

import json
import logging
import math
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    DEFAULT_SAVE_HOOKS,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
    get_default_hook,
    torch_patched_state_dict_load,
)
from speechbrain.utils.distributed import (
    MainProcessContext,
    ddp_barrier,
    ddp_broadcast,
    if_main_process,
    main_process_only,
)
from speechbrain.utils.logger import get_logger

from speechbrain_ssl import distributed

logger = get_logger(__name__)

MANIFEST = "MANIFEST.json"
# Folders of work that is not done. One training at a time has the folder of the
# checkpoints (``files.occupy``), so such folders at its start are leftovers.
SAVING, DELETING = ".saving", ".deleting+"
# torch.save does not raise OSError when its C++ writer cannot write.
TORCH_WRITE_ERRORS = (
    "inline_container",
    "PytorchStreamWriter",
    "iostream error",
)
# All functions that SpeechBrain's decorator returns share this code object.
_MAIN_ONLY_CODE = main_process_only(print).__code__


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's ``Checkpointer``, safe against kills and full disks.

    * A checkpoint appears under its ``CKPT+...`` name complete and on the disk,
      or not at all. What a killed process leaves is removed by the next save
      or recovery.
    * A damaged checkpoint (missing, truncated or changed file, unreadable
      ``CKPT.yaml``) is passed over with a warning, and never deleted here. If
      all are damaged, choosing one raises an error.
    * Values in ``meta`` become plain Python values, and a metric that is NaN
      is never the lowest or the highest.
    * When the disk is full, an error is logged, older checkpoints stay, and
      training goes on; the next save tries again.
    * An error while saving is raised in all processes; none waits for ever.

    Saving, deleting and recovering are called in all processes, as in
    SpeechBrain; only the main one chooses, writes and deletes. Listing and
    finding involve the calling process only. All processes must see the same
    file system. Checkpoints have no names of the user's.

    Arguments
    ---------
    checkpoints_dir : str
        Folder of the checkpoints; made if missing.
    recoverables : dict
        Name -> object to save and recover.

    Example
    -------
    >>> model = torch.nn.Linear(2, 1)
    >>> folder = getfixture("tmp_path")
    >>> checkpointer = AtomicCheckpointer(folder, {"model": model})
    >>> _ = checkpointer.save_checkpoint(meta={"EER": np.float64(3.1)})
    >>> checkpointer.recover_if_possible(min_key="EER").meta["EER"]
    3.1
    """

    def __init__(
        self,
        checkpoints_dir: str | os.PathLike,
        recoverables: dict | None = None,
    ):
        try:
            super().__init__(checkpoints_dir, recoverables)
        except OSError as error:
            raise OSError(
                f"The folder {os.path.abspath(checkpoints_dir)} cannot be "
                f"made: {error.strerror}. Name another output_folder."
            ) from error
        self.failed_saves = 0
        # folder -> what reading it in full showed; listing does not read all
        self._damage = {}
        self._warned = set()

    def add_recoverables(self, recoverables: dict) -> None:
        """As in SpeechBrain; a missing file is then named in the error."""
        super().add_recoverables(recoverables)
        for name in recoverables:
            self.optional_recoverables.setdefault(name, False)

    def save_checkpoint(
        self,
        meta: dict = {},
        end_of_epoch: bool = True,
        verbosity: int = logging.INFO,
    ) -> Checkpoint | None:
        """Saves a checkpoint; call it in all processes.

        ``meta`` has metrics and marks to choose by; NumPy and torch values are
        fine. ``end_of_epoch`` is False in the middle of an epoch. Gives None in
        other processes than the main one, and when the disk refused the
        checkpoint (see ``failed_saves``).
        """
        checkpoint = self._save(meta, end_of_epoch, verbosity)
        return checkpoint if if_main_process() else None

    def save_and_keep_only(
        self,
        meta: dict = {},
        end_of_epoch: bool = True,
        keep_recent: bool = True,
        verbosity: int = logging.INFO,
        **kept: Any,
    ) -> None:
        """Saves a checkpoint and then, if it is in place, deletes old ones.

        ``kept`` are arguments of ``delete_checkpoints``.
        """
        if self._save(meta, end_of_epoch, verbosity) is not None:
            recency = [ckpt_recency] if keep_recent else []
            self.delete_checkpoints(
                importance_keys=recency, verbosity=verbosity, **kept
            )

    def _save(self, meta, end_of_epoch, verbosity):
        """Returns the checkpoint, or None, in all processes."""
        attempt = _Attempt()
        staging = attempt.on_main(self._new_staging)
        if staging is not None:
            self._call_save_hooks(staging, attempt)
        # Hooks of other processes may write too: complete after all of them.
        checkpoint: Any = None
        if attempt.first_error() is None:
            checkpoint = attempt.on_main(
                self._complete, staging, meta, end_of_epoch
            )
        error = attempt.first_error()
        if error is not None:
            self._give_up(staging, attempt, error)
            return None
        kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
        if if_main_process():
            logger.log(
                verbosity, f"Saved an {kind} checkpoint in {checkpoint.path}"
            )
        return checkpoint

    def _new_staging(self):
        self._remove_leftovers()
        staging = self.checkpoints_dir / SAVING
        staging.mkdir()
        return staging

    def _call_save_hooks(self, staging, attempt):
        for name, obj in self.recoverables.items():
            path = staging / f"{name}{PARAMFILE_EXT}"
            hook = attempt(self._save_hook, name, obj)
            if hook is None:
                continue
            if getattr(hook, "__code__", None) is not _MAIN_ONLY_CODE:
                attempt(hook, obj, path)
            elif attempt.error is None:
                # Such a hook ends in a broadcast, which the others would wait
                # for if it raised in the main process: here it has none.
                with MainProcessContext():
                    attempt(hook, obj, path)

    def _save_hook(self, name, obj):
        hook = get_default_hook(obj, DEFAULT_SAVE_HOOKS)
        if hook is None:
            raise RuntimeError(
                f"Cannot save '{name}': {type(obj).__name__} has no save hook."
                " Decorate its class with register_checkpoint_hooks."
            )
        is_default = hook is DEFAULT_SAVE_HOOKS[torch.nn.Module]
        if is_default and not obj.state_dict():
            return _save_nothing  # SpeechBrain's hook warns at each save
        return hook

    def _complete(self, staging, meta, end_of_epoch):
        """Gives the finished folder its name."""
        saved_meta = self._save_checkpoint_metafile(
            staging / METAFNAME, plain(meta), end_of_epoch
        )
        write_manifest(staging)
        folder = self._new_checkpoint_dirpath()
        os.rename(staging, folder)
        _flush(self.checkpoints_dir)
        paramfiles = {
            name: folder / f"{name}{PARAMFILE_EXT}"
            for name in self.recoverables
        }
        return Checkpoint(folder, saved_meta, paramfiles)

    def _give_up(self, staging, attempt, error):
        """Clears away, then logs a refusal of the disk or raises."""
        if staging is not None and if_main_process():
            shutil.rmtree(staging, ignore_errors=True)
        if not error["disk"]:
            raise attempt.error or RuntimeError(error["message"])
        self.failed_saves += 1
        if if_main_process():
            free = shutil.disk_usage(self.checkpoints_dir).free / 2**20
            logger.error(
                f"No checkpoint was saved in {self.checkpoints_dir}: "
                f"{error['message']}. {free:.0f} MiB are free there. Older "
                "checkpoints are untouched. Free some space (or your quota); "
                "the next save tries again. Failed so far: "
                f"{self.failed_saves}."
            )

    def list_checkpoints(self) -> list[Checkpoint]:
        """Lists the checkpoints, without the ones that are seen to be damaged.

        Files are compared with the manifest by size; they are read in full only
        when a checkpoint is chosen.
        """
        return self._survey()[0]

    def find_checkpoints(
        self,
        importance_key: Callable | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Callable | None = None,
        max_num_checkpoints: int | None = None,
    ) -> list[Checkpoint]:
        """As in SpeechBrain, but only numbers compete for a metric.

        Checkpoints whose ``max_key`` or ``min_key`` is NaN or no number are
        left out, with a warning.
        """
        metric = max_key or min_key

        def competes(checkpoint):
            if ckpt_predicate is not None and not ckpt_predicate(checkpoint):
                return False
            return metric is None or self._has_number(checkpoint, metric)

        return super().find_checkpoints(
            importance_key, max_key, min_key, competes, max_num_checkpoints
        )

    def find_checkpoint(self, *order: Any, **which: Any) -> Checkpoint | None:
        """Picks the best checkpoint that reads back as it was written.

        The arguments are those of ``find_checkpoints``. It is a RuntimeError if
        all are damaged.
        """
        ranked = self.find_checkpoints(*order, **which)
        for checkpoint in ranked:
            if self.is_whole(checkpoint):
                return checkpoint
        healthy, damaged = self._survey()
        if damaged and (ranked or not healthy):
            raise RuntimeError(_all_damaged(self.checkpoints_dir, damaged))
        return None

    def is_whole(self, checkpoint: Checkpoint) -> bool:
        """Compares the checksums of all files of a checkpoint."""
        damage = find_damage(checkpoint.path)
        if damage is not None:
            self._damage[checkpoint.path] = damage
            self._warn_of_damage(checkpoint.path, damage)
        return damage is None

    def recover_if_possible(
        self, *order: Any, **which: Any
    ) -> Checkpoint | None:
        """Loads the best whole checkpoint, the same in all processes.

        The arguments are those of ``find_checkpoints``: the newest one by
        default. It is a RuntimeError if all are damaged.
        """

        def choose():
            self._remove_leftovers()
            return self.find_checkpoint(*order, **which)

        attempt = _Attempt()
        chosen = attempt.on_main(choose)
        attempt.raise_everywhere()
        if chosen is None:
            logger.info("Would load a checkpoint here, but none found yet.")
        else:
            self.load_checkpoint(chosen)
        return chosen

    def _survey(self):
        """Returns the healthy checkpoints, and folder -> damage."""
        healthy, damaged = [], {}
        for folder in sorted(self.checkpoints_dir.glob(f"{CKPT_PREFIX}*")):
            checkpoint, damage = self._examine(folder)
            if damage is None:
                healthy.append(checkpoint)
            elif folder.is_dir():  # else a file, or deleted meanwhile
                damaged[folder] = damage
                self._warn_of_damage(folder, damage)
        return healthy, damaged

    def _examine(self, folder):
        damage = self._damage.get(folder) or find_damage(folder, read=False)
        if damage is not None:
            return None, damage
        try:
            (checkpoint,) = self._construct_checkpoint_objects([folder])
        except (OSError, ValueError, yaml.YAMLError) as error:
            return None, f"{METAFNAME} cannot be read ({_one_line(error)})"
        meta = checkpoint.meta
        if not isinstance(meta, Mapping) or not (
            _is_number(meta.get("unixtime")) and "end-of-epoch" in meta
        ):
            return None, f"{METAFNAME} has no unixtime or no end-of-epoch"
        return checkpoint, None

    def _has_number(self, checkpoint, metric):
        if _is_number(checkpoint.meta[metric]):
            return True
        self._warn_once(
            (checkpoint.path, metric),
            f"{checkpoint.path} does not compete for the best {metric}: its "
            f"value is {checkpoint.meta[metric]}.",
        )
        return False

    def _warn_of_damage(self, folder, damage):
        self._warn_once(
            (folder, damage),
            f"The checkpoint {folder} is damaged and passed over: {damage}.",
        )

    def _warn_once(self, key, message):
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message)

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Sequence[str] | None = None,
        max_keys: Sequence[str] | None = None,
        importance_keys: Sequence[Callable] = (ckpt_recency,),
        ckpt_predicate: Callable | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """Deletes all but the best checkpoints; call it in all processes.

        The arguments are SpeechBrain's.
        """
        if num_to_keep < 0:
            raise ValueError(f"num_to_keep must be >= 0, got {num_to_keep}.")
        orders: list[dict[str, Any]] = [
            {"min_key": key} for key in min_keys or ()
        ]
        orders += [{"max_key": key} for key in max_keys or ()]
        orders += [{"importance_key": key} for key in importance_keys]
        ddp_barrier()  # no process still reads one of them
        attempt = _Attempt()
        attempt.on_main(
            self._delete, orders, num_to_keep, ckpt_predicate, verbosity
        )
        attempt.raise_everywhere()

    def _delete(self, orders, num_to_keep, ckpt_predicate, verbosity):
        listed = filter(ckpt_predicate, self.list_checkpoints())
        by_path = {checkpoint.path: checkpoint for checkpoint in listed}
        candidates, kept = set(), set()
        for order in orders:
            metric = order.get("min_key", order.get("max_key"))
            candidates.update(
                path
                for path, checkpoint in by_path.items()
                if metric is None or metric in checkpoint.meta
            )
            best = self.find_checkpoints(
                ckpt_predicate=ckpt_predicate,
                max_num_checkpoints=num_to_keep,
                **order,
            )
            kept.update(checkpoint.path for checkpoint in best)
        for path in sorted(candidates - kept):
            self._delete_folder(path, verbosity)

    def _delete_folder(self, folder, verbosity):
        # Renamed first: a kill half-way must not leave half a checkpoint.
        doomed = folder.with_name(DELETING + folder.name)
        try:
            os.rename(folder, doomed)
        except OSError as error:
            logger.warning(f"The checkpoint {folder} was not deleted: {error}")
            return
        shutil.rmtree(doomed, ignore_errors=True)
        logger.log(verbosity, f"Deleted checkpoint in {folder}")

    def _remove_leftovers(self):
        """Clears away what killed processes left in the middle of something."""
        for kind in (SAVING, DELETING):
            for path in self.checkpoints_dir.glob(f"{kind}*"):
                shutil.rmtree(path, ignore_errors=True)
                logger.info(f"Removed {path}, left by a killed process.")


def plain(meta: Mapping) -> dict:
    """Turns metrics and marks into what any YAML reader understands.

    Tensors and arrays become numbers or lists, tuples become lists; numbers,
    text, None, lists and dictionaries stay, anything else becomes text.

    Example
    -------
    >>> plain({"EER": np.float64(1.5), "loss": torch.tensor(2), "shape": (1,)})
    {'EER': 1.5, 'loss': 2, 'shape': [1]}
    """

    def other(value):
        is_number = isinstance(value, (torch.Tensor, np.ndarray, np.generic))
        return value.tolist() if is_number else str(value)

    return json.loads(json.dumps(meta, default=other))


def write_manifest(folder: str | os.PathLike) -> None:
    """Notes the size and checksum of each file, after all are on the disk.

    Also makes a checkpoint of SpeechBrain's own ``Checkpointer`` acceptable to
    ``AtomicCheckpointer``.
    """
    folder = pathlib.Path(folder)
    files = {}
    for path in sorted(folder.rglob("*")):
        _flush(path)
        if path.is_file() and not path.name.startswith(MANIFEST):
            files[path.relative_to(folder).as_posix()] = {
                "size": path.stat().st_size,
                "crc32": _crc32(path),
            }
    # In two steps, as this folder may be a checkpoint already.
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps({"files": files}, indent=1), "utf-8")
    _flush(temporary)
    os.replace(temporary, folder / MANIFEST)
    _flush(folder)


def find_damage(folder: str | os.PathLike, read: bool = True) -> str | None:
    """Compares a checkpoint with its manifest.

    With ``read``, files are read and checksums compared, not just sizes. Gives
    which file is wrong, and how; None if all is well.
    """
    folder = pathlib.Path(folder)
    try:
        text = (folder / MANIFEST).read_text("utf-8")
        files = {
            name: (entry["size"], entry["crc32"])
            for name, entry in json.loads(text)["files"].items()
        }
    except (FileNotFoundError, NotADirectoryError):
        return (
            f"{MANIFEST} is missing (if SpeechBrain's own Checkpointer wrote "
            "it, call speechbrain_ssl.checkpoints.write_manifest on it)"
        )
    except (
        *(OSError, ValueError, LookupError),
        *(TypeError, AttributeError),
    ) as error:
        return f"{MANIFEST} cannot be read ({_one_line(error)})"
    if METAFNAME not in files:
        return f"{METAFNAME} is not in {MANIFEST}"
    for name, expected in files.items():
        damage = _file_damage(folder / name, *expected, read)
        if damage is not None:
            return f"{name} {damage}"
    return None


def average_of_last(
    checkpointer: AtomicCheckpointer, name: str, count: int
) -> dict:
    """Averages the last end-of-epoch checkpoints of a module.

    With fewer than ``count``, all there are, with a warning. Gives a state dict
    on the CPU: floating-point tensors are averaged in float64 and have their
    own type again, all else is the newest one's.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    chosen = []
    for checkpoint in checkpointer.find_checkpoints(
        ckpt_predicate=lambda c: c.meta["end-of-epoch"] and name in c.paramfiles
    ):
        if len(chosen) < count and checkpointer.is_whole(checkpoint):
            chosen.append(checkpoint)
    where = checkpointer.checkpoints_dir
    if not chosen:
        raise ValueError(
            f"No end-of-epoch checkpoint in {where} has '{name}'; there is "
            "nothing to average."
        )
    if len(chosen) < count:
        logger.warning(
            f"Averaging '{name}' over {len(chosen)} checkpoints instead of "
            f"{count}: {where} has no more. Keep more of them (num_to_keep)."
        )
    return _average(checkpoint.paramfiles[name] for checkpoint in chosen)


@main_process_only
def _save_nothing(module, path):
    """Saves a module that has neither parameters nor buffers."""
    torch.save({}, path)


class _Attempt:
    """Keeps the first exception of this process instead of raising it.

    A process that left early would leave the others waiting in a collective
    call; so all go on together, then learn what happened.
    """

    def __init__(self):
        self.error = None

    def __call__(self, function, *args):
        try:
            return function(*args)
        except Exception as error:
            self.error = self.error or error
            return None

    def on_main(self, function, *args):
        """Runs in the main process; all get the result, None if it failed."""
        result = None
        if if_main_process():
            with MainProcessContext():
                result = self(function, *args)
        return ddp_broadcast(result)

    def first_error(self):
        """The same in all processes: a dictionary, None if none failed."""
        mine = None
        if self.error is not None:
            mine = {
                "message": f"{type(self.error).__name__}: {self.error}",
                "disk": is_disk_error(self.error),
            }
        errors = [
            error
            for error in distributed.gather_objects(mine)
            if error is not None
        ]
        # An error of another kind matters more than the full disk.
        return min(errors, key=lambda error: error["disk"], default=None)

    def raise_everywhere(self):
        """Raises in all processes if one failed."""
        error = self.first_error()
        if error is not None:
            raise self.error or RuntimeError(error["message"])


def is_disk_error(error: BaseException) -> bool:
    """Whether a file could not be written, by Python or by torch.save."""
    if isinstance(error, OSError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in TORCH_WRITE_ERRORS
    )


def _is_number(value):
    return isinstance(value, (int, float)) and not math.isnan(value)


def _one_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())


def _all_damaged(folder, damaged):
    lines = "\n".join(
        f"  {path.name}: {damage}" for path, damage in damaged.items()
    )
    return (
        f"No checkpoint in {folder} can be used:\n{lines}\n"
        "Restore one from a copy, or, to begin anew, move that folder away or "
        "give another output folder."
    )


def _flush(path):
    """Waits until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc32(path):
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _file_damage(path, size, crc32, read):
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes instead of {size}"
        if read and _crc32(path) != crc32:
            return f"has changed: its checksum is not the one in {MANIFEST}"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error})"
    return None


def _average(paths):
    newest: dict[str, Any] = {}
    sums, count = {}, 0
    for path in paths:
        state = torch_patched_state_dict_load(path)
        newest = newest or state
        for key, value in state.items():
            if torch.is_tensor(value) and value.is_floating_point():
                sums[key] = sums.get(key, 0.0) + value.double()
        count += 1
    means = {key: sums[key] / count for key in sums}
    return {
        key: means[key].to(value.dtype) if key in means else value
        for key, value in newest.items()
    }
