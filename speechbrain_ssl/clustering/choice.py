"""A clusterer by its name, so that a command line can choose it."""

import inspect
from typing import Any

from speechbrain_ssl.clustering.clusterers import Graph, TwoStage
from speechbrain_ssl.clustering.kmeans import KMeans

METHODS = {"kmeans": KMeans, "two_stage": TwoStage, "graph": Graph}


def choose(method: str = "two_stage", **settings: Any):
    """Makes a clusterer.

    Settings of the other methods are left out, so that one list of settings
    serves all methods.

    Arguments
    ---------
    method : str
        ``kmeans``, ``two_stage`` (k-means, whose clusters Ward linkage
        merges) or ``graph``.
    **settings
        Arguments of the three classes.

    Returns
    -------
    KMeans or TwoStage or Graph
        The clusterer.

    Raises
    ------
    ValueError
        If there is no such method, or no method has a setting.

    Example
    -------
    >>> choose("kmeans", n_clusters=6000, fine_clusters=50000)
    KMeans(n_clusters=6000)
    """
    known = {
        name: inspect.signature(kind).parameters
        for name, kind in METHODS.items()
    }
    if method not in known:
        raise ValueError(
            f"method is {method!r}; it must be one of {', '.join(known)}"
        )
    unknown = set(settings).difference(*known.values())
    if unknown:
        raise ValueError(
            f"No clusterer has a setting {min(unknown)!r}; {method} has "
            f"{', '.join(known[method])}"
        )
    return METHODS[method](
        **{k: v for k, v in settings.items() if k in known[method]}
    )
