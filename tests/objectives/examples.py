"""One small example of each objective of the package, found by itself.

An objective whose required arguments are not in ``small_arguments`` needs an
entry there, or a line in the list of the test that asks for it.
"""

import importlib
import inspect
import pkgutil

import torch

from speechbrain_ssl import objectives
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterTable
from speechbrain_ssl.objectives.dino import DINO
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.simclr import SimCLR

VIEWS, BATCH, DIM = 3, 6, 5
QUEUE = 2 * BATCH + 1
LABELS = [0, 1, -1, 2, 1, 0]


def classes():
    """Objectives by name: all modules of the package that define one."""
    found = {}
    for info in pkgutil.iter_modules(objectives.__path__):
        name = f"{objectives.__name__}.{info.name}"
        for kind in vars(importlib.import_module(name)).values():
            is_module = inspect.isclass(kind) and issubclass(
                kind, torch.nn.Module
            )
            if is_module and kind.__module__ == name:
                found[kind.__name__] = kind
    return found


def clusters():
    """A table of three clusters and one utterance of noise."""
    table = ClusterTable(KMeans(), clusters=3)
    table.prepare(BATCH)
    points = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(2))
    points = torch.nn.functional.normalize(points, dim=-1)
    table._fill(torch.tensor(LABELS), points)
    return table


def small_arguments():
    """Values by the name of an argument, for projections [..., DIM]."""
    return {
        "dim": DIM,
        "emb_dim": DIM,
        "prototypes": DIM,
        "hidden": 8,
        "queue_size": QUEUE,
        # BatchNorm without SyncBatchNorm sees one process only
        "norm": None,
        "whitening_size": BATCH,
        "dino": DINO(DIM - 2),
        "width": 2,
        "table": clusters(),
        "tables": [clusters()],
        "objective": MoCo(DIM, QUEUE),
        "objectives": [SimCLR(), MoCo(DIM, QUEUE)],
        "weights": [0.5, lambda epoch: 2.0],
    }


def make(kind, **changes):
    """A small objective of a class.

    Arguments
    ---------
    kind : type
        One of ``classes``.
    **changes
        Arguments that ``small_arguments`` lack, or has otherwise.

    Returns
    -------
    torch.nn.Module
        For projections and embeddings of width DIM, with the same weights
        each time.
    """
    torch.manual_seed(0)
    known = inspect.signature(kind).parameters
    small = {k: v for k, v in small_arguments().items() if k in known}
    missing = [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind
        not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in {**small, **changes}
    ]
    if missing:
        raise KeyError(
            f"{kind.__name__} needs {', '.join(missing)}: give small values "
            "in small_arguments of tests/objectives/examples.py"
        )
    return kind(**{**small, **changes})
