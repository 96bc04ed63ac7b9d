"""Compares clusters that need no label with the true speakers.

    > python benchmarks/cluster_count.py LABELS/embeddings [more folders] \
        --truth SPEECH/truth/train_speakers.csv

Clusters the embeddings that ``make_pseudo_labels.py`` extracted, e.g. with and
without ``--augmented_copies``: by Ward's linkage with the number of clusters of
the best silhouette (``BestCount``), in levels (``Levels``), and with the true
number of speakers, without and with ``Whitened``. Prints a Markdown table. True
speakers are read for the table and for the rows with their number.
"""

import argparse

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from speechbrain_ssl.clustering.clusterers import TwoStage
from speechbrain_ssl.clustering.count import BestCount, Levels
from speechbrain_ssl.clustering.quality import oracle
from speechbrain_ssl.clustering.whitening import Whitened
from speechbrain_ssl.pseudo_labels.extract import load
from speechbrain_ssl.pseudo_labels.labels import read_truth

SHARES = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)


def main():
    """Clusters each folder in five ways and compares with the truth."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("embeddings_folders", nargs="+")
    parser.add_argument("--truth", required=True)
    args = parser.parse_args()
    print("| embeddings | clusters by | clusters | wrong | ARI | AMI |")
    print("|---|---|---|---|---|---|")
    for folder in args.embeddings_folders:
        found = load(folder)
        truth = read_truth(args.truth, found.ids)
        speakers = len(np.unique(truth))
        ward, points = TwoStage(linkage="ward"), np.array(found.matrix)
        whitened = Whitened(ward)
        ways = {
            "largest silhouette": BestCount(ward, SHARES),
            "levels": Levels(ward, SHARES),
            "levels, whitened": Levels(whitened, SHARES),
            "true number of speakers": BestCount(ward, speakers),
            "true number of speakers, whitened": BestCount(whitened, speakers),
        }
        for name, clusterer in ways.items():
            labels = clusterer.fit_predict(points)
            purity = oracle(labels, truth)["purity"]
            print(
                f"| {folder} | {name} | {len(np.unique(labels))} "
                f"| {100 * (1 - purity):.1f} % "
                f"| {adjusted_rand_score(truth, labels):.3f} "
                f"| {adjusted_mutual_info_score(truth, labels):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
