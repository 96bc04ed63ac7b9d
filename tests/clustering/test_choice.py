"""Clusterers by name."""

import pytest

from speechbrain_ssl.clustering.choice import METHODS, choose

SETTINGS = {"n_clusters": 5, "fine_clusters": 9, "threshold": 0.4}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gets_its_own_settings(method):
    made = choose(method, random_state=3, **SETTINGS)
    assert type(made) is METHODS[method]
    found = made.get_params()
    assert found["random_state"] == 3
    for name in SETTINGS.keys() & found.keys():
        assert found[name] == SETTINGS[name]


def test_misspelled_settings_and_methods_are_refused():
    with pytest.raises(ValueError, match="n_cluster'"):
        choose("kmeans", n_cluster=5)
    with pytest.raises(ValueError, match="kmeans, two_stage, graph"):
        choose("k-means")
