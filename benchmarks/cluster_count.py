"""What the numbers of clusters that need no label are worth.

    > python benchmarks/cluster_count.py RESULTS/pseudo_labels/embeddings \
        --truth SPEECH/truth/train_speakers.csv

Clusters the embeddings that ``make_pseudo_labels.py`` extracted: by Ward's
linkage with the number of clusters of the best silhouette (``BestCount``), in
levels (``Levels``), and with the true number of speakers. Prints a Markdown
table; true speakers are read for it and for the last row alone.
"""

import argparse

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from speechbrain_ssl.clustering.clusterers import TwoStage
from speechbrain_ssl.clustering.count import BestCount, Levels
from speechbrain_ssl.pseudo_labels.extract import load
from speechbrain_ssl.pseudo_labels.labels import read_truth

SHARES = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)


def main():
    """Clusters in three ways and compares with the truth."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("embeddings_folder")
    parser.add_argument("--truth", required=True)
    args = parser.parse_args()
    found = load(args.embeddings_folder)
    truth = read_truth(args.truth, found.ids)
    speakers = len(np.unique(truth))
    ward, points = TwoStage(linkage="ward"), np.array(found.matrix)
    clusterers = {
        "largest silhouette": BestCount(ward, SHARES),
        "levels": Levels(ward, SHARES),
        "true number of speakers": BestCount(ward, speakers),
    }
    print("| clusters by | clusters | ARI | AMI |\n|---|---|---|---|")
    for name, clusterer in clusterers.items():
        labels = clusterer.fit_predict(points)
        ari = adjusted_rand_score(truth, labels)
        ami = adjusted_mutual_info_score(truth, labels)
        count = len(np.unique(labels))
        print(f"| {name} | {count} | {ari:.3f} | {ami:.3f} |", flush=True)
        for level in getattr(clusterer, "levels_", ()):
            print(f"<!-- {level} -->")


if __name__ == "__main__":
    main()
