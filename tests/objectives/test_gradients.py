"""Gradients are those of the losses, as differences in float64 say."""

import pytest
import torch

from speechbrain_ssl.nnet.branch import Views
from speechbrain_ssl.nnet.margins import ArcFace, CurricularFace, MagFace
from speechbrain_ssl.objectives.barlow_twins import BarlowTwins
from speechbrain_ssl.objectives.byol import BYOL
from speechbrain_ssl.objectives.deep_cluster import DeepCluster
from speechbrain_ssl.objectives.dino import DINO
from speechbrain_ssl.objectives.koleo import KoLeo
from speechbrain_ssl.objectives.lim import LIM
from speechbrain_ssl.objectives.moco import MoCo
from speechbrain_ssl.objectives.nnclr import NNCLR
from speechbrain_ssl.objectives.rdino import RDINO
from speechbrain_ssl.objectives.sdpn import SDPN
from speechbrain_ssl.objectives.simclr import SimCLR
from speechbrain_ssl.objectives.ssps import SSPS
from speechbrain_ssl.objectives.swav import SwAV
from speechbrain_ssl.objectives.vibcreg import VIbCReg
from speechbrain_ssl.objectives.vicreg import VICReg
from speechbrain_ssl.objectives.weighted import Weighted
from speechbrain_ssl.objectives.wmse import WMSE
from tests.objectives import test_deep_cluster, test_ssps

VIEWS, BATCH, DIM = 3, 6, 5
LABELS = [0, 0, 1, 1, 2, -1]

OBJECTIVES = {
    "barlow_twins": lambda: BarlowTwins(0.3, 0.7),
    "byol": lambda: BYOL(DIM, hidden=3),
    "deep_cluster": lambda: DeepCluster([clusters()], 0.3, True),
    "dino": lambda: DINO(DIM, 0.3, 0.2, 0.9, 0, 2.0, 0.5),
    "dino_sinkhorn": lambda: DINO(DIM, 0.3, 0.2, sinkhorn_iterations=3),
    "koleo": KoLeo,
    "lim_nce": lambda: LIM("nce"),
    "lim_bce": lambda: LIM("bce"),
    "lim_mine": lambda: LIM("mine"),
    "moco": lambda: MoCo(DIM, 7, 0.3, 0.1),
    "moco_arcface": lambda: MoCo(DIM, 7, 0.3, ArcFace(0.3)),
    "nnclr": lambda: NNCLR(DIM, 3, 7),
    "nnclr_early": lambda: NNCLR(DIM, 3, 7, neighbors_from=9.0),
    "rdino": lambda: RDINO(DINO(DIM - 2, 0.3, 0.2), width=2),
    # the targets come from the prototypes as well, but without gradient
    "sdpn": lambda: SDPN(
        DIM,
        7,
        0.3,
        0.5,
        train_prototypes=False,
        dimension_weight=0.4,
        consistency_weight=0.6,
    ),
    "simclr": lambda: SimCLR(0.3, 0.1),
    "simclr_arcface": lambda: SimCLR(0.3, ArcFace(0.3)),
    "simclr_curricularface": lambda: SimCLR(0.3, CurricularFace(0.3)),
    "simclr_magface": lambda: SimCLR(0.3, MagFace((0.1, 0.4), (1.0, 3.0), 2.0)),
    "ssps": lambda: SSPS(MoCo(DIM, 7, 0.3), test_ssps.table(), DIM, 8),
    "vibcreg": lambda: VIbCReg(group_size=DIM),
    "vicreg": VICReg,
    "weighted": lambda: Weighted([SimCLR(0.3), KoLeo()], [2.0, 0.5]),
    "wmse": lambda: WMSE(DIM, eps=0.1),
}


def clusters():
    return test_deep_cluster.table(LABELS, torch.randn(BATCH, DIM))


def check(objective, still=0):
    """Compares with differences, in all inputs but the first ``still`` views.

    The parameters that learn are inputs as well.
    """
    index = torch.arange(BATCH)
    points = torch.randn(4, VIEWS, BATCH, DIM, dtype=torch.float64)
    teacher = Views(*points[:2], index)
    # in training, so that there is a queue or a center
    objective.double()(teacher, teacher, 0.5)
    objective.eval()

    def loss(*inputs):
        student = [
            torch.cat([fixed[:still], x[still:]])
            for fixed, x in zip(points[2:], inputs)
        ]
        return objective(Views(*student, index), teacher, 0.5)[0]

    learning = [p for p in objective.parameters() if p.requires_grad]
    inputs = [x.clone().requires_grad_() for x in points[2:]]
    assert torch.autograd.gradcheck(
        loss, (*inputs, *learning), atol=1e-7, rtol=1e-5
    )


# Without SimSiam and AdaFace, where what moves the loss (targets, lengths) gets
# no gradient on purpose; a test of SimSiam's compares it with BYOL.
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_the_loss(name):
    check(OBJECTIVES[name]())


def test_gradients_of_swav_are_those_of_the_loss_given_its_targets():
    objective = SwAV(DIM, 7, 0.3, 0.3, target_views=1)
    check(objective.requires_grad_(False), still=1)
