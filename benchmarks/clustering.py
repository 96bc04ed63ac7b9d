"""k-means and agglomeration: time, memory and quality beside plain faiss.

    > python benchmarks/clustering.py --points 200000 --clusters 4000
    > python benchmarks/clustering.py --points 1090000 --clusters 7500
    > python benchmarks/clustering.py --agglomerate 50000 7500

Unit points are drawn around random directions, in groups of very unlike sizes
(log-normal), and written to a temporary file. ``KMeans`` of this package, on
the memory-mapped file, and ``faiss.Kmeans``, on the array in memory, then find
as many clusters as there are groups, in as many iterations, each in a fresh
process; the time is that of centroids and labels together. Beside the figures
stand their bounds: for time the matrix products of plain iterations and nothing
else, for memory the file, and for quality the labels of the nearest true
direction. ``peak_mb`` is the process's largest resident size, which counts
what it read of a mapped file; ``peak_per_file`` leaves out what it had after
the imports. ``NMI`` is with true groups, and so is ``AMI``, whose chance term is
that of a random order of the labels (the exact one takes hours).

``--agglomerate`` takes as many points into as many clusters, which is the
second stage of ``TwoStage``; beside it stands the search for neighbors alone.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import faiss
import numpy as np
import torch
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from speechbrain_ssl.clustering.clusterers import TwoStage
from speechbrain_ssl.clustering.kmeans import KMeans

BLOCK = 8192
# points that are multiplied at once where the bound is measured
FLOOR_BLOCK = 512


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--clusters", type=int, default=4_000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument(
        "--noise",
        type=float,
        default=1.6,
        help="expected length of what is added to a direction",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument(
        "--agglomerate",
        type=int,
        nargs=2,
        metavar=("POINTS", "CLUSTERS"),
        help="measure this instead of k-means",
    )
    parser.add_argument("--output", help="also write the JSON there")
    return parser.parse_args(argv)


def main(argv=None):
    """Measures each way in a process of its own and prints one object."""
    args = parse(argv)
    ways = [kmeans, plain]
    if args.agglomerate:
        args.points, args.clusters = args.agglomerate
        ways = [agglomerate]
    with tempfile.TemporaryDirectory() as folder:
        bounds = apart(generate, args, folder)
        found = {way.__name__: apart(way, args, folder) for way in ways}
        scores = {name: score(args, folder, name) for name in found}
    for name, figures in found.items():
        figures.update(scores[name])
        figures["peak_per_file"] = round(
            figures["peak_mb_added"] / bounds["file_mb"], 2
        )
        figures["times_floor"] = round(
            figures["seconds"] / bounds["floor_seconds"], 2
        )
    if "plain" in found:
        found["kmeans"]["times_plain"] = round(
            found["kmeans"]["seconds"] / found["plain"]["seconds"], 2
        )
    result = {"settings": vars(args), "bounds": bounds, **found}
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")


def apart(function, *inputs):
    """Calls a function in a fresh interpreter, whose memory holds nothing."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(_limited, function, *inputs).result()


def _limited(function, args, *inputs):
    """Calls a function with as many threads as asked for."""
    if args.threads:
        faiss.omp_set_num_threads(args.threads)
        torch.set_num_threads(args.threads)
    return function(args, *inputs)


def generate(args, folder):
    """Writes points and their groups; returns the bounds of all figures."""
    rng = np.random.default_rng(args.seed)
    shape = args.clusters, args.dim
    centers = rng.standard_normal(shape, dtype=np.float32) / args.dim**0.5
    shares = rng.lognormal(0, 0.8, args.clusters)
    truth = rng.choice(args.clusters, args.points, p=shares / shares.sum())
    np.save(os.path.join(folder, "truth.npy"), truth)
    path = os.path.join(folder, "points.npy")
    points = np.lib.format.open_memmap(
        path, "w+", np.float32, (args.points, args.dim)
    )
    best = np.empty(args.points, np.int64)
    unit = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    for first in range(0, args.points, BLOCK):
        block = centers[truth[first : first + BLOCK]]
        noise = rng.standard_normal(block.shape, dtype=np.float32)
        block += args.noise / args.dim**0.5 * noise
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        points[first : first + BLOCK] = block
        _, found = faiss.knn(block, unit, 1, faiss.METRIC_INNER_PRODUCT)
        best[first : first + BLOCK] = found[:, 0]
    points.flush()
    np.save(os.path.join(folder, "bounds.npy"), best)
    return {
        "floor": "neighbors of all points"
        if args.agglomerate
        else "matrix products of all iterations and the labels",
        "floor_seconds": round(_floor(args, points, unit), 3),
        "file_mb": round(os.path.getsize(path) / 2**20, 1),
        "best": score(args, folder, "bounds"),
    }


def _floor(args, points, centers):
    """Seconds of the least work that the task needs."""
    if args.agglomerate:
        points = np.array(points)
        start = time.perf_counter()
        faiss.knn(points, points, 21)
        return time.perf_counter() - start
    # few enough points for the products to stay in the cache
    some = torch.from_numpy(np.array(points[:FLOOR_BLOCK]))
    others, seconds = torch.from_numpy(centers).T, []
    products = torch.empty(len(some), others.shape[1])
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(some, others, out=products)
        seconds.append(time.perf_counter() - start)
    passes = args.points / len(some) * (args.iterations + 1)
    return min(seconds) * passes


def kmeans(args, folder):
    """This package's, on the mapped file."""
    clusterer = KMeans(
        args.clusters, n_iter=args.iterations, random_state=args.seed
    )
    path = os.path.join(folder, "points.npy")
    return measure(
        lambda: clusterer.fit_predict(np.load(path, mmap_mode="r")),
        os.path.join(folder, "kmeans.npy"),
    )


def plain(args, folder):
    """faiss's own, on all points in memory."""
    clusterer = faiss.Kmeans(
        args.dim,
        args.clusters,
        niter=args.iterations,
        spherical=True,
        seed=args.seed,
        min_points_per_centroid=1,
    )

    def run():
        points = np.load(os.path.join(folder, "points.npy"))
        clusterer.train(points)
        return clusterer.assign(points)[1]

    return measure(run, os.path.join(folder, "plain.npy"))


def agglomerate(args, folder):
    """The second stage of ``TwoStage``, on as many points."""
    clusterer = TwoStage(args.clusters, fine_clusters=None)
    path = os.path.join(folder, "points.npy")
    return measure(
        lambda: clusterer.fit_predict(np.load(path, mmap_mode="r")),
        os.path.join(folder, "agglomerate.npy"),
    )


def measure(function, path):
    """Time and memory of a call; its labels are written to a file."""
    before, start = peak_mb(), (time.perf_counter(), time.process_time())
    labels = function()
    figures = {
        "seconds": round(time.perf_counter() - start[0], 3),
        "cpu_seconds": round(time.process_time() - start[1], 3),
        "peak_mb": round(peak_mb(), 1),
        "peak_mb_added": round(peak_mb() - before, 1),
    }
    np.save(path, labels)
    return figures


def peak_mb():
    """Largest resident size of this program, in MB (Linux).

    What getrusage says would begin with the size of the parent process.
    """
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) / 2**10


def score(args, folder, name):
    """How well labels agree with the groups that were drawn."""
    truth = np.load(os.path.join(folder, "truth.npy"))
    labels = np.load(os.path.join(folder, f"{name}.npy"))
    shuffled = np.random.default_rng(args.seed).permutation(labels)
    shared = mutual_info_score(truth, labels)
    chance = mutual_info_score(truth, shuffled)
    nmi = normalized_mutual_info_score(truth, labels)
    ami = (shared - chance) / (shared / nmi - chance)
    figures = {"NMI": round(float(nmi), 4), "AMI": round(float(ami), 4)}
    filled = len(np.unique(labels))
    return {**figures, "empty_clusters": args.clusters - filled}


if __name__ == "__main__":
    main()
