"""Each statistic of an objective has a line that says what it means."""

import pytest
import torch

from speechbrain_ssl.nnet.branch import BranchOutput
from tests.objectives import examples


@pytest.mark.parametrize("name", examples.classes())
def test_all_statistics_have_a_line_and_no_others(name):
    objective = examples.make(examples.classes()[name])
    size = examples.VIEWS, examples.BATCH, examples.DIM
    points, index = torch.randn(size), torch.arange(examples.BATCH)
    views = BranchOutput(points, points, index)
    _, stats = objective(views, views, 0.0)
    assert set(objective.stats_help) == set(stats)
    for text in objective.stats_help.values():
        assert text[0].isupper() and text.endswith(".") and "\n" not in text
