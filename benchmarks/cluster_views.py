"""Views of other utterances of a cluster, against views of one utterance.

    > PYTHONPATH=benchmarks python benchmarks/cluster_views.py \
        --data_folder SPEECH/train --start MOCO/model \
        --labels labels/pseudo_labels.csv --trials SPEECH/trials/wild.txt \
        [--methods dino ca_dino simclr simclr+clusters ssps] [--seeds 1] \
        [settings of the YAMLs]

Every method trains its small profile from the encoder of ``--start``. Where it
uses clusters, these are the labels of ``make_pseudo_labels.py`` from the first
epoch on, so that runs differ in the views alone: ``ca_dino``, any method with
``+clusters``, and ``ssps`` with positives from the own cluster. What is there
already is not trained again. Prints a line of JSON for each run. Training reads
no speaker label.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import torch

from speechbrain_ssl.evaluation.verification import verify
from speechbrain_ssl.loading import load_encoder
from speechbrain_ssl.pseudo_labels.labels import read_labels

RECIPE = pathlib.Path(__file__).resolve().parents[1] / "recipes/AudioFolder/SSL"
CLUSTERED = ("ca_dino", "ssps")
TABLE = (
    "!new:speechbrain_ssl.clustering.table.ClusterTable "
    "{clusterer: !new:cluster_views.Labels {path: %s}, clusters: null, "
    "every: 1000000, min_agreement: 0}"
)


class Labels:
    """A clusterer that gives the labels of a file."""

    def __init__(self, path):
        self.path = path

    def fit_predict(self, points):
        """Labels of all utterances, in the order of the training CSV."""
        # the audio is not read
        labels = read_labels(self.path, data_root=".").classes
        if len(labels) != len(points):
            raise ValueError(
                f"{self.path} has {len(labels)} labels for {len(points)} "
                "utterances. Make labels of this training set."
            )
        return labels


def started(model, folder):
    """Loads the weights of an exported folder into an embedding model."""
    path = pathlib.Path(folder, "embedding_model.ckpt")
    model.load_state_dict(torch.load(path, map_location="cpu"))


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--start", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--trials", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=["dino", "ca_dino"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--number_of_epochs", type=int, default=4)
    parser.add_argument(
        "--output_folder", type=pathlib.Path, default="results/cluster_views"
    )
    return parser.parse_known_args()


def train(args, further, method, seed):
    """Trains unless it has been done; returns the model's folder."""
    folder = args.output_folder.absolute() / f"{method}_{seed}"
    if (folder / "model").is_dir():
        return folder / "model"
    method, plus, _ = method.partition("+clusters")
    text = (RECIPE / f"hparams/train_{method}.yaml").read_text()
    # before the teacher, which copies the student
    head = "# Head and teacher\n"
    start = pathlib.Path(args.start).absolute()
    apply = "!apply:cluster_views.started"
    line = f"start: {apply} {{model: !ref <embedding_model>, folder: {start}}}"
    assert text.count(head) == 1
    yaml = args.output_folder.absolute() / f"{method}.yaml"
    yaml.parent.mkdir(parents=True, exist_ok=True)
    yaml.write_text(text.replace(head, f"{line}\n{head}"))
    given = {
        "data_folder": args.data_folder,
        "seed": seed,
        "number_of_epochs": args.number_of_epochs,
        "output_folder": folder,
    }
    if plus or method in CLUSTERED:
        labels = pathlib.Path(args.labels).absolute()
        given |= {"cluster_from": 0, "cluster_table": TABLE % labels}
    if method == "ssps":
        given["objective"] = "{neighbors: 0}"  # positives of the own cluster
    command = [
        sys.executable,
        "train_ssl.py",
        str(yaml),
        "--noprogressbar=True",
    ]
    command += [f"--{key}={value}" for key, value in given.items()]
    subprocess.run(command + further, cwd=RECIPE, check=True)
    return folder / "model"


def error_rates(model, trials):
    """EER of each trial list, in percent, for an exported folder."""
    encoder = load_encoder(model)
    rates, cache = {}, {}  # lists of one model may share files
    for path in trials:
        found = verify(
            encoder.encode_batch,
            path,
            sample_rate=encoder.audio_normalizer.sample_rate,
            cache=cache,
            progress=False,
        )
        rates[pathlib.Path(path).stem] = round(found["raw"]["EER"], 2)
    return rates


def main():
    """Trains and verifies all."""
    args, further = parse_arguments()
    for seed in args.seeds:
        for method in args.methods:
            model = train(args, further, method, seed)
            row = {"method": method, "seed": seed}
            row |= error_rates(model, args.trials)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
