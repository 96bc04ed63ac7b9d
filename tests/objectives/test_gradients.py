"""Gradients are those of the losses, as differences in float64 say."""

import pytest
import torch

from speechbrain_ssl.objectives.swav import SwAV
from tests.objectives import examples

# Their gradients are others on purpose. The targets of SimSiam, of SwAV, and of
# SDPN through its prototypes get none: tests of SimSiam compare it with BYOL;
# below are SwAV with targets that stay, and SDPN with fixed prototypes. AAT
# reverses those of its adversary, which has tests of its own.
STOPPED = {"SimSiam", "SwAV", "SwAV-queue", "SDPN", "AAT"}


def check(objective, still=0):
    """Compares with differences, in all inputs but the first ``still`` views.

    The parameters that learn are inputs as well.
    """
    objective.double()
    student, first = (
        examples.random_views(examples.VIEWS, torch.float64) for _ in range(2)
    )
    teacher = first._replace(
        embedding=first.embedding[:2],
        projection=first.projection[:2],
        view_id=(0, 1),
    )
    # so that there is something in a queue or a center
    examples.step(objective, first, teacher)
    objective.eval()
    fixed = student[:2]

    def loss(*inputs):
        changed = [
            torch.cat([x[:still], y[still:]]) for x, y in zip(fixed, inputs)
        ]
        views = student._replace(embedding=changed[0], projection=changed[1])
        return objective(views, teacher, 0.5)[0]

    learning = [p for p in objective.parameters() if p.requires_grad]
    inputs = [x.clone().requires_grad_() for x in fixed]
    assert torch.autograd.gradcheck(
        loss, (*inputs, *learning), atol=1e-7, rtol=1e-5
    )


@pytest.mark.parametrize("name", sorted(set(examples.all_examples()) - STOPPED))
def test_gradients_are_those_of_the_loss(name):
    check(examples.all_examples()[name]())


def test_gradients_of_swav_are_those_of_the_loss_given_its_targets():
    objective = SwAV(examples.DIM, 7, 0.3, 0.3, target_views=1)
    check(objective.requires_grad_(False), still=1)
