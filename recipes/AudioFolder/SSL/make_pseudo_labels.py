"""Clusters the embeddings of an exported model into labels to train on.

To run this recipe::

    > python make_pseudo_labels.py hparams/pseudo_labels.yaml \
        --model_folder results/simclr/1/model --data_folder /audio

Extraction by three machines that see the same disk, each with another number;
the last one to finish goes on to the labels::

    > python make_pseudo_labels.py hparams/pseudo_labels.yaml \
        --model_folder results/simclr/1/model --data_folder /audio \
        --num_parts 3 --part_idx 0

or by several GPUs of one: ``torchrun --standalone --nproc_per_node=4
make_pseudo_labels.py ...``. After a kill, the same command goes on.

``<output_folder>`` gets ``embeddings/``, ``pseudo_labels.csv`` (the training
CSV with ``spk_id``) and ``report.json``. True speakers, if given as ``truth``,
are read at the very end and only for the report.
"""

import logging
import os
import sys

import numpy as np
import speechbrain as sb
from audio_folder_prepare import prepare_audio_folder
from speechbrain.utils.distributed import infer_device

from speechbrain_ssl import distributed
from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.inference import load_encoder
from speechbrain_ssl.options import load_experiment
from speechbrain_ssl.pseudo_labels import quality
from speechbrain_ssl.pseudo_labels.clustering import tidy
from speechbrain_ssl.pseudo_labels.extract import encoder_hash, extract
from speechbrain_ssl.pseudo_labels.labels import (
    CSV_NAME,
    labels_of,
    read_labels,
    read_truth,
    write_labels,
)

logger = logging.getLogger(__name__)


def check_files(hparams):
    """Finds missing files before anything is computed.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.

    Raises
    ------
    FileNotFoundError
        If a file that was named is not there.
    """
    for key in ("train_annotation", "previous", "truth"):
        path = hparams[key]
        if path is not None and not os.path.isfile(path):
            raise FileNotFoundError(f"There is no file {path} ({key}).")


def find_utterances(hparams):
    """Reads the training set, or lists the folder of audio.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.

    Returns
    -------
    Utterances
        Without any label.
    """
    annotation = hparams["train_annotation"]
    if annotation is None:
        annotation = os.path.join(hparams["output_folder"], "train.csv")
        sb.utils.distributed.run_on_main(
            prepare_audio_folder,
            kwargs={
                "data_folder": hparams["data_folder"],
                "save_csv": annotation,
                "min_seconds": hparams["min_seconds"],
            },
        )
    return read_annotation(annotation, data_root=hparams["data_folder"])


def embed(hparams, run_opts, utterances):
    """Extracts this job's part of the embeddings.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.
    run_opts : dict
        SpeechBrain's run options.
    utterances : Utterances
        The training set.

    Returns
    -------
    Embeddings
        None if other parts are missing.
    """
    device = run_opts["device"] or infer_device()
    model = load_encoder(hparams["model_folder"], device)
    return extract(
        model.encode_batch,
        utterances,
        hparams["embeddings_folder"],
        sample_rate=model.audio_normalizer.sample_rate,
        encoder=encoder_hash(hparams["model_folder"]),
        max_seconds=hparams["max_seconds"],
        dtype=hparams["embeddings_dtype"],
        chunk_size=hparams["chunk_size"],
        batch_seconds=hparams["batch_seconds"],
        device=device,
        progress=not run_opts["noprogressbar"],
        part_idx=hparams["part_idx"],
        num_parts=hparams["num_parts"],
    )


def cluster(hparams, embeddings):
    """Finds labels and says how good they seem.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.
    embeddings : Embeddings
        Of the training set.

    Returns
    -------
    labels : np.ndarray
        Class of each embedding, -1 for none [rows].
    report : dict
        ``clustering``, ``quality`` and, with true speakers, ``oracle``.
    """
    points, clusterer = embeddings.matrix, hparams["clusterer"]
    if hparams["unit_length"]:
        points = np.array(points, dtype=np.float32)
        norms = np.linalg.norm(points, axis=1, keepdims=True)
        points /= np.maximum(norms, 1e-12)
    raw = clusterer.fit_predict(points)
    labels, tidied = tidy(raw, hparams["min_size"], hparams["max_size"])
    found = quality.describe(embeddings.matrix, labels)
    found["stability"] = None
    if hparams["ask_stability"]:
        found["stability"] = quality.stability(clusterer, points, raw)
    found["previous"] = None
    if hparams["previous"] is not None:
        before = read_labels(
            hparams["previous"], data_root=hparams["data_folder"]
        )
        found["previous"] = quality.agreement(
            labels, labels_of(before, embeddings.ids)
        )
    report = {
        "clustering": {
            "clusterer": type(clusterer).__name__,
            "seed": hparams["seed"],
            "empty_clusters": getattr(clusterer, "n_empty_", None),
            "failed": len(embeddings.failed),
            **tidied,
        },
        "quality": found,
    }
    if hparams["truth"] is not None:
        truth = read_truth(hparams["truth"], embeddings.ids)
        report["oracle"] = quality.oracle(labels, truth)
    return labels, report


def describe(report):
    """The report in a few lines.

    Arguments
    ---------
    report : dict
        What was written to report.json.

    Returns
    -------
    str
        The lines.
    """
    made, found = report["clustering"], report["quality"]
    lines = [
        f"{found['labelled']} of {found['utterances']} utterances in "
        f"{found['clusters']} clusters of {found['size']['min']} to "
        f"{found['size']['max']}; without label: {made['noise']} noise, "
        f"{made['tiny']} in tiny and {made['giant']} in giant clusters; "
        f"{made['failed']} more could not be embedded"
    ]
    if found["margin"]["mean"] is not None:
        lines.append(
            f"cosine to the own centroid {found['own_cosine']['mean']:.3f}, "
            f"{found['margin']['mean']:.3f} more than to the next one; "
            f"{100 * found['misplaced']:.1f} % are nearer to another"
        )
    for key, name in (
        ("stability", "another seed"),
        ("previous", "the labels before"),
    ):
        agreed = found[key]
        if agreed is not None and agreed["ARI"] is not None:
            lines.append(
                f"agreement with {name}: ARI {agreed['ARI']:.3f} over "
                f"{agreed['utterances']} utterances"
            )
    if "oracle" in report:
        known = report["oracle"]
        lines.append(
            f"true speakers (for this report only): NMI {known['NMI']:.3f}, "
            f"purity {known['purity']:.3f}, ARI {known['ARI']:.3f}"
        )
    lines += [f"WARNING: {text}" for text in found["warnings"]]
    return "\n".join(lines)


def main(argv):
    """Extracts, clusters, writes; returns the report, if it came to that."""
    _, run_opts, hparams, _ = load_experiment(argv)
    check_files(hparams)
    sb.utils.distributed.ddp_init_group(run_opts)
    utterances = find_utterances(hparams)
    embeddings = embed(hparams, run_opts, utterances)
    if embeddings is None:
        print(
            f"Part {hparams['part_idx']} of {hparams['num_parts']} is done. "
            "The job that does the last missing part makes the labels."
        )
        return None
    if distributed.rank() > 0:
        return None
    labels, report = cluster(hparams, embeddings)
    report = write_labels(
        hparams["output_folder"],
        utterances,
        embeddings.ids,
        labels,
        embeddings.meta["made"]["embeddings"],
        report,
    )
    print(describe(report))
    print(os.path.join(hparams["output_folder"], CSV_NAME))
    return report


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ImportError, OSError, ValueError) as error:
        logger.debug("Stopped", exc_info=True)
        sys.exit(f"make_pseudo_labels.py: {error}")
