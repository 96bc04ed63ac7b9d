"""Choice of a clusterer by name, on the command line."""

import inspect
from typing import Any

from speechbrain_ssl.clustering.clusterers import Graph, TwoStage
from speechbrain_ssl.clustering.kmeans import KMeans

METHODS = {"kmeans": KMeans, "two_stage": TwoStage, "graph": Graph}


def choose(method: str = "two_stage", **settings: Any) -> Any:
    """Makes a ``KMeans``, ``TwoStage`` or ``Graph``.

    Arguments
    ---------
    method : str
        ``kmeans``, ``two_stage`` or ``graph``.
    **settings
        Arguments of these classes; those that the class does not have are
        ignored, so that one list of settings fits all methods.

    Raises
    ------
    ValueError
        If the method, or a setting in all classes, is unknown.

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
