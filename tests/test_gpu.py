"""Everything on a real GPU, where torch itself refuses to wait in a step.

``tests/test_devices.py`` runs the same functions on a pretended one.
"""

import pytest
import torch

from speechbrain_ssl.clustering.device import DevicePoints
from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.devices import Later, send
from tests.clustering.test_kmeans import mixture
from tests.test_devices import (  # noqa: F401
    corpus,
    test_a_step_of_stage_one_does_not_wait,
    test_a_step_of_stage_two_does_not_wait,
    test_a_step_that_is_not_finite_changes_nothing,
    test_a_trained_encoder_is_exported_and_used,
    test_large_margins_on_a_transformer,
    test_objectives,
    test_stage_one,
    test_stage_two,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"
)


@pytest.fixture
def cuda():
    """A real device instead of a pretended one."""


def test_a_message_waits_for_what_came_before_it_only():
    x = send(torch.arange(4.0), "cuda")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        message = Later(2 * x)
        y = x
        for _ in range(50):
            y = y.sin()
        assert message.read().tolist() == [0.0, 2.0, 4.0, 6.0]
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("spherical", [True, False])
def test_clusters_are_those_of_the_cpu(spherical):
    points, _ = mixture(20000, 24, 150, 0.7)
    here, there = (
        KMeans(150, spherical=spherical, n_iter=8, device=device)
        for device in ("cpu", "cuda")
    )
    assert isinstance(there._points(points), DevicePoints)
    labels, found = here.fit_predict(points), there.fit_predict(points)
    assert (labels == found).mean() > 0.98
    there.cluster_centers_ = here.cluster_centers_
    assert (there.predict(points) == labels).all()
