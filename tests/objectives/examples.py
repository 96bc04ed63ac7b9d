"""Small examples of each objective of the package, found by themselves.

An objective whose required arguments ``small_arguments`` does not know needs
an entry there.
"""

import functools
import importlib
import inspect
import pkgutil

import torch

from speechbrain_ssl import objectives
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterTable
from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.schedules import linear
from speechbrain_ssl.objectives.barlow_twins import BarlowTwins
from speechbrain_ssl.objectives.cross_modal import CrossModal
from speechbrain_ssl.objectives.deep_cluster import DeepCluster
from speechbrain_ssl.objectives.dino import DINO
from speechbrain_ssl.objectives.lim import LIM
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.nnclr import NNCLR
from speechbrain_ssl.objectives.sdpn import SDPN
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.objectives.ssps import SSPS
from speechbrain_ssl.objectives.swav import SwAV

VIEWS, BATCH, DIM = 3, 6, 5
QUEUE = 2 * BATCH + 1
LABELS = [0, 1, -1, 2, 1, 0]


def classes():
    """Objectives by name: all modules that the package's files define."""
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
        "emb_dim": DIM,
        "prototypes": DIM,
        "hidden": 8,
        "queue_size": QUEUE,
        # BatchNorm without SyncBatchNorm sees one process only
        "norm": None,
        "whitening_size": BATCH,
        # covariances of as many utterances as dimensions cannot be inverted
        "eps": 0.1,
        "dino": DINO(DIM - 2),
        "width": 2,
        "table": clusters(),
        "tables": [clusters()],
        "objective": MoCo(DIM, QUEUE),
        "objectives": [SimCLR(), MoCo(DIM, QUEUE)],
        "weights": [
            0.5,
            functools.partial(linear, start=0.0, stop=2.0, epochs=1),
        ],
    }


def make(kind):
    """A small objective of a class, for projections of width DIM."""
    known = inspect.signature(kind).parameters
    small = {k: v for k, v in small_arguments().items() if k in known}
    missing = [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and name not in small
    ]
    if missing:
        raise KeyError(
            f"{kind.__name__} needs {', '.join(missing)}: add small values to "
            "small_arguments in tests/objectives/examples.py"
        )
    return kind(**small)


# other settings of these objectives
VARIANTS = {
    "BarlowTwins-weights": lambda: BarlowTwins(0.3, 0.7),
    "CrossModal-within": lambda: CrossModal(
        2, 0.3, 0.5, voice=MoCo(DIM, QUEUE)
    ),
    "DINO-regularised": lambda: DINO(DIM, 0.3, 0.2, 0.9, 0, 2.0, 0.5),
    "DINO-sinkhorn": lambda: DINO(
        DIM, 0.3, 0.2, sinkhorn_iterations=3, koleo_weight=0.3
    ),
    "DeepCluster-concentrations": lambda: DeepCluster([clusters()], 0.3, True),
    "LIM-bce": lambda: LIM("bce"),
    "LIM-mine": lambda: LIM("mine"),
    "MoCo-margin": lambda: MoCo(DIM, 7, 0.3, 0.1),
    "NNCLR-early": lambda: NNCLR(DIM, 3, 7, norm=None, neighbors_from=9.0),
    "SDPN-fixed": lambda: SDPN(
        DIM,
        7,
        0.3,
        0.5,
        train_prototypes=False,
        dimension_weight=0.4,
        consistency_weight=0.6,
    ),
    "SSPS-SimCLR": lambda: SSPS(SimCLR(), clusters(), DIM, 11, 0),
    "SimCLR-margin": lambda: SimCLR(0.3, 0.1),
    # 6 utterances fill the queue in one step; 5 does not divide by 2
    "SwAV-queue": lambda: SwAV(
        DIM, 9, epsilon=0.2, queue_size=5, queue_from=0.0
    ),
}


def all_examples():
    """Functions that make each objective and its variants, by name."""
    small = {n: functools.partial(make, k) for n, k in classes().items()}
    return {**small, **VARIANTS}


def random_views(count, dtype=torch.float32):
    """Views of as many utterances as the tables have."""
    points = torch.randn(2, count, BATCH, DIM, dtype=dtype)
    return BranchOutput(*points, torch.arange(BATCH), tuple(range(count)))


def step(objective, student, teacher=None, epoch=0.0):
    """What a training does with a batch.

    Returns
    -------
    tuple
        Loss and statistics, before the objective has kept anything of it.
    """
    output = objective(student, teacher, epoch)
    with torch.no_grad():
        if hasattr(objective, "commit"):
            objective.commit(student, teacher)
    return output
