r"""Clusters the embeddings of an exported model into labels to train on.

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
CSV with ``spk_id``), ``report.json`` and ``clusters.html``, a page to listen
to. What one hears there goes into ``edits.csv`` in the same folder; then the
same command with two more options corrects these labels::

    > python make_pseudo_labels.py hparams/pseudo_labels.yaml \
        --model_folder results/simclr/1/model --data_folder /audio \
        --edits results/pseudo_labels/edits.csv \
        --output_folder results/corrected_labels

With ``channel_groups``, utterances that were recorded alike form groups, and the
mean embedding of each group is subtracted before clustering;
``channel_groups.npz`` keeps the groups.

With ``--face_model_folder`` the embeddings of the faces, which the column
``face`` of the training CSV names, are joined with those of the voices.

True speakers, if given as ``truth``, are read at the very end and only for the
report.
"""

import contextlib
import json
import logging
import os
import shutil

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

import numpy as np
from audio_folder_prepare import prepare_audio_folder
from speechbrain_ssl import distributed
from speechbrain_ssl.checks import check_keys, number, one_of, optional, whole
from speechbrain_ssl.clustering import quality
from speechbrain_ssl.clustering.clusterers import tidy
from speechbrain_ssl.dataio import faces
from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.loading import face_size_of, load_encoder
from speechbrain_ssl.options import load_experiment, settings_of
from speechbrain_ssl.pseudo_labels import channels, joint
from speechbrain_ssl.pseudo_labels.edits import apply_edits, read_edits
from speechbrain_ssl.pseudo_labels.extract import (
    average_augmented,
    encoder_hash,
    extract,
    load,
)
from speechbrain_ssl.pseudo_labels.labels import (
    CSV_NAME,
    REPORT_NAME,
    labels_of,
    read_labels,
    read_truth,
    write_labels,
)
from speechbrain_ssl.report.clusters import PAGE_NAME, write_clusters
from speechbrain_ssl.script import run_script

import speechbrain as sb
from speechbrain.utils.distributed import infer_device

logger = logging.getLogger(__name__)

# folder of the embeddings of voices and faces together
JOINT = "joint_embeddings"
# file of the channel groups
GROUPS = "channel_groups.npz"


def check_settings(hparams):
    """Checks keys and files before anything is computed."""
    for key in ("train_annotation", "previous", "truth", "edits"):
        path = hparams[key]
        if path is not None and not os.path.isfile(path):
            raise FileNotFoundError(f"There is no file {path} ({key}).")
    given = [hparams[k] for k in ("model_folder", "embeddings_folder", "edits")]
    if given == [None, None, None]:
        raise ValueError(
            "model_folder is null: name a model, or an embeddings_folder with "
            "complete embeddings."
        )
    check_keys(hparams, num_parts=whole(1))
    check_keys(
        hparams,
        seed=whole(0),
        min_seconds=number(0),
        max_seconds=optional(number(above=0)),
        batch_seconds=number(above=0),
        augmented_copies=whole(0),
        chunk_size=whole(1),
        part_idx=whole(0, hparams["num_parts"] - 1),
        unit_length=one_of(True, False),
        min_size=whole(1),
        max_size=optional(number(above=0)),
        ask_stability=one_of(True, False),
        listen=whole(0),
        channel_groups=channels.COUNT,
        face_weight=number(0, 1),
        agreement=one_of(True, False),
    )
    if hparams["agreement"] and hparams["face_model_folder"] is None:
        raise ValueError(
            "agreement is that of clusters of voices and faces: name a "
            "face_model_folder, or set agreement to False."
        )
    if hparams["edits"] is None:
        return
    read_edits(hparams["edits"])
    folder = os.path.dirname(os.path.abspath(hparams["edits"]))
    if not os.path.isfile(os.path.join(folder, CSV_NAME)):
        raise FileNotFoundError(
            f"There is no {CSV_NAME} in {folder}. Corrections must lie beside "
            "the labels that they correct."
        )
    if os.path.realpath(folder) == os.path.realpath(hparams["output_folder"]):
        raise ValueError(
            f"output_folder is {folder}, whose labels are to be corrected. "
            "Name another one for the corrected labels."
        )


def find_embeddings_folder(hparams):
    """Folder of the embeddings, which may not exist yet.

    It is ``embeddings_folder`` if that is set. Otherwise it is that of the
    labels that are corrected, which their report names, or ``embeddings`` in
    ``output_folder``.
    """
    folder, name = hparams["output_folder"], "embeddings"
    if hparams["embeddings_folder"] is not None:
        return hparams["embeddings_folder"]
    if hparams["edits"] is not None:
        folder = os.path.dirname(os.path.abspath(hparams["edits"]))
        path = os.path.join(folder, REPORT_NAME)
        with open(path, encoding="utf-8") as file:
            name = json.load(file).get("embeddings_folder", name)
    return os.path.normpath(os.path.join(folder, name))


def find_utterances(hparams):
    """Reads the training set, or lists the folder of audio."""
    annotation = hparams["train_annotation"]
    if annotation is None:
        annotation = os.path.join(hparams["output_folder"], "train.csv")
        sb.utils.distributed.run_on_main(
            prepare_audio_folder,
            kwargs={
                "data_folder": hparams["data_folder"],
                "save_csv": annotation,
                "min_seconds": hparams["min_seconds"],
                "find_faces": hparams["face_model_folder"] and faces.find_faces,
            },
        )
    return read_annotation(annotation, data_root=hparams["data_folder"])


def with_faces(hparams):
    """The training set with its column ``face``."""
    annotation = hparams["train_annotation"]
    if annotation is None:
        annotation = os.path.join(hparams["output_folder"], "train.csv")
    return read_annotation(
        annotation, hparams["data_folder"], extra=(faces.COLUMN,)
    )


def embed(hparams, run_opts, utterances, augmented):
    """Extracts this job's part of the embeddings, or reads given ones.

    ``augmented`` has the plain settings of the augmentation, to record. Gives
    None while other parts are missing.
    """
    if hparams["model_folder"] is None:
        found = load(hparams["embeddings_folder"])
        unknown = set(found.ids).difference(utterances.ids())
        if unknown:
            raise ValueError(
                f"{hparams['embeddings_folder']} has {len(unknown)} IDs that "
                f"are not in the training set, e.g. {min(unknown)}. Extract "
                "the embeddings of this training set."
            )
        return found
    return run_extraction(
        hparams,
        run_opts,
        utterances,
        hparams["model_folder"],
        find_embeddings_folder(hparams),
        augmented,
    )


def run_extraction(
    hparams, run_opts, utterances, model_folder, folder, augmented=None
):
    """Extracts this job's part of the embeddings of voices or faces.

    For a face encoder, ``utterances`` have the column ``face``. ``augmented``
    has the plain settings of the augmentation of voices, to record. Gives None
    while other parts are missing.
    """
    device = run_opts["device"] or infer_device()
    model = load_encoder(model_folder, device, hparams["trust"])
    face_size = face_size_of(model)
    check_kind(model_folder, face_size, faces.COLUMN in utterances.extra)
    sample_rate = model.audio_normalizer.sample_rate
    encode, more_settings = model.encode_batch, {}
    if hparams["augmented_copies"] and face_size is None:
        hparams["augmentation"].prepare(sample_rate, utterances)
        encode = average_augmented(
            encode,
            hparams["augmentation"].to(device),
            hparams["augmented_copies"],
            hparams["seed"],
        )
        more_settings = {
            "augmented_copies": hparams["augmented_copies"],
            "augmentation": augmented,
            "seed": hparams["seed"],
        }
    return extract(
        encode,
        utterances,
        folder,
        sample_rate=sample_rate,
        encoder=encoder_hash(model_folder),
        max_seconds=hparams["max_seconds"],
        dtype=hparams["embeddings_dtype"],
        chunk_size=hparams["chunk_size"],
        batch_seconds=hparams["batch_seconds"],
        device=device,
        progress=not run_opts["noprogressbar"],
        part_idx=hparams["part_idx"],
        num_parts=hparams["num_parts"],
        face_size=face_size,
        more_settings=more_settings,
    )


def check_kind(model_folder, face_size, is_face):
    """Refuses a voice encoder in place of a face encoder, and vice versa."""
    if (face_size is None) == is_face:
        kind = "voice" if face_size is None else "face"
        raise ValueError(
            f"{model_folder} is a {kind} encoder. Give voice encoders as "
            "model_folder, face encoders as face_model_folder."
        )


def check_faces(hparams):
    """Checks faces and their encoder before voices are embedded, for hours."""
    with_faces(hparams).having(faces.COLUMN)
    folder = hparams["face_model_folder"]
    model = load_encoder(folder, trust=hparams["trust"])
    check_kind(folder, face_size_of(model), True)


def embed_faces(hparams, run_opts, voice):
    """Extracts embeddings of faces, and joins them with those of voices.

    ``voice`` is None while parts of the voices are missing; so is the result
    while any part is.
    """
    root = hparams["output_folder"]
    face = run_extraction(
        hparams,
        run_opts,
        with_faces(hparams).having(faces.COLUMN),
        hparams["face_model_folder"],
        os.path.join(root, "face_embeddings"),
    )
    if voice is None or face is None:
        return None
    folder = os.path.join(root, JOINT)
    distributed.on_first(
        joint.join, voice, face, folder, hparams["face_weight"]
    )
    return load(folder)


def find_channels(hparams, run_opts, utterances, embeddings):
    """Channel group of each embedding [rows], by all processes together.

    None if there are no groups.
    """
    if not hparams["channel_groups"] or not len(embeddings.ids):
        return None
    utterances = utterances.take(
        np.isin(list(utterances.ids()), embeddings.ids)
    )
    groups = channels.channel_groups(
        utterances,
        os.path.join(hparams["output_folder"], GROUPS),
        embeddings.meta["settings"]["sample_rate"],
        hparams["channel_groups"],
        hparams["seed"],
        run_opts["device"] or infer_device(),
    )
    if groups.max() == 0:
        return None
    row = {name: n for n, name in enumerate(utterances.ids())}
    return groups[[row[name] for name in embeddings.ids]]


def without_channels(embeddings, groups):
    """Embeddings whose voices lack the mean of their channel group.

    ``groups`` are those of ``find_channels``. Gives also, for the report, the
    number of groups and the share of the variance that they explain; None if
    there are no groups.
    """
    if groups is None:
        return embeddings, None
    matrix = np.array(embeddings.matrix, dtype=np.float32)
    voices = matrix[:, : embeddings.meta["made"].get("voice_dim")]
    lengths = np.linalg.norm(voices, axis=1, keepdims=True)
    found, share = channels.subtract_channels(voices, groups)
    voices[:] = lengths * found
    return embeddings._replace(matrix=matrix), {
        "groups": int(groups.max()) + 1,
        "share": share,
        "subtracted": share <= channels.LARGEST_SHARE,
    }


def cluster(hparams, embeddings, removed):
    """Clusters embeddings and measures the clusters.

    ``removed`` says what the embeddings lack; both are of
    ``without_channels``. Gives the class of each embedding, -1 for none [rows],
    and a report with ``clustering``, ``quality`` and, with true speakers,
    ``oracle``.
    """
    points, clusterer = embeddings.matrix, hparams["clusterer"]
    if hparams["unit_length"]:
        points = np.array(points, dtype=np.float32)
        norms = np.linalg.norm(points, axis=1, keepdims=True)
        points /= np.maximum(norms, 1e-12)
    agreed = {}
    if hparams["agreement"]:
        raw, clusters = joint.agree(
            joint.parts_of(embeddings), len(points), clusterer.fit_predict
        )
        agreed = {"agreement": quality.agreement(*clusters.values())}
    else:
        raw = clusterer.fit_predict(points)
    labels, tidied = tidy(raw, hparams["min_size"], hparams["max_size"])
    report = measure(hparams, embeddings, labels)
    report.update(agreed)
    if hparams["ask_stability"] and not agreed:
        report["quality"]["stability"] = quality.stability(
            clusterer, points, raw
        )
    clustering = {
        "clusterer": type(clusterer).__name__,
        "seed": hparams["seed"],
        "empty_clusters": getattr(clusterer, "n_empty_", None),
        "levels": getattr(clusterer, "levels_", None),
        "failed": len(embeddings.failed),
        "channels": removed,
        **tidied,
    }
    return labels, {"clustering": clustering, **report}


def correct(hparams):
    """Corrects finished labels as ``edits`` says.

    Gives the labels before, the embeddings that were clustered, the corrected
    class of each embedding, -1 for none [rows], and a report with
    ``clustering`` of the labels before, ``edits``, ``quality`` and, with true
    speakers, ``oracle``.
    """
    edits = read_edits(hparams["edits"])
    folder = os.path.dirname(hparams["edits"])
    csv_path = os.path.join(folder, CSV_NAME)
    embeddings = load(find_embeddings_folder(hparams))
    before = read_labels(
        csv_path,
        data_root=hparams["data_folder"],
        embeddings=embeddings.meta["made"]["embeddings"],
        extra=(faces.COLUMN,) if joint.parts_of(embeddings) else (),
    )
    classes = labels_of(before, embeddings.ids)
    if (classes >= 0).sum() < len(before.utterances):
        raise ValueError(
            f"{csv_path} has utterances without an embedding. Make the labels "
            "again."
        )
    clustering = before.report.get("clustering")
    if has_channels := bool((clustering or {}).get("channels")):
        groups = os.path.join(folder, GROUPS)
        found = channels.read_groups(groups, embeddings.ids)
        embeddings, _ = without_channels(embeddings, found)
    # the numbers that the file has, which corrections name
    labels = np.where(classes >= 0, before.names[classes], -1)
    edited = apply_edits(
        edits, labels, embeddings.ids, embeddings.matrix, hparams["seed"]
    )
    report = {
        "clustering": clustering,
        "edits": edited.report,
        **measure(hparams, embeddings, edited.labels),
    }
    if has_channels:  # the corrected labels can be corrected, too
        path = os.path.join(hparams["output_folder"], GROUPS)
        with open(groups, "rb") as source, write_whole(path, "wb") as file:
            shutil.copyfileobj(source, file)
    return before, embeddings, edited.labels, report


def measure(hparams, embeddings, labels):
    """Quality of labels; with true speakers, also agreement with them.

    ``labels`` has the class of each embedding, -1 for none [rows]. Gives
    ``quality`` and ``oracle``.
    """
    found = quality.describe(embeddings.matrix, labels)
    found["stability"] = found["previous"] = None
    if hparams["previous"] is not None:
        before = read_labels(
            hparams["previous"], data_root=hparams["data_folder"]
        )
        found["previous"] = quality.agreement(
            labels, labels_of(before, embeddings.ids)
        )
    report = {"quality": found}
    for name, (rows, points) in joint.parts_of(embeddings).items():
        own = labels[rows]  # some clusters have no face
        own[own >= 0] = np.unique(own[own >= 0], return_inverse=True)[1]
        if (own >= 0).any():  # a face_weight of 1 leaves no voices
            report[f"quality_of_{name}s"] = quality.describe(points, own)
    if hparams["truth"] is not None:
        truth = read_truth(hparams["truth"], embeddings.ids)
        report["oracle"] = quality.oracle(labels, truth)
    return report


def describe(report):
    """The content of report.json in a few lines."""
    found = report["quality"]
    lines = [
        f"{found['labelled']} of {found['utterances']} utterances in "
        f"{found['clusters']} clusters of {found['size']['min']} to "
        f"{found['size']['max']}"
    ]
    if report["clustering"] is not None:
        made = report["clustering"]
        lines.append(
            f"clustering gave no label to {made['noise']} utterances as noise, "
            f"{made['tiny']} in tiny and {made['giant']} in giant clusters; "
            f"{made['failed']} more could not be embedded"
        )
        if removed := made.get("channels"):
            rather = "" if removed["subtracted"] else ": rather speakers"
            lines.append(
                f"the means of {removed['groups']} groups recorded alike were "
                f"{'' if removed['subtracted'] else 'not '}subtracted; they "
                f"explain {100 * removed['share']:.0f} % of the embeddings"
                f"{rather}"
            )
    if "edits" in report:
        counts = (f"{n} {name}" for name, n in report["edits"].items())
        lines.append(f"corrections: {', '.join(counts)}".replace("_", " "))
    if found["margin"]["mean"] is not None:
        lines.append(
            f"intra-cluster cosine {found['intra_cluster_cosine']['mean']:.3f}, "
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
    for name in ("voice", "face"):
        if part := report.get(f"quality_of_{name}s"):
            cosine = part["intra_cluster_cosine"]["mean"]
            lines.append(
                f"{name}s of {part['utterances']} utterances"
                + (f": intra-cluster cosine {cosine:.3f}" if cosine else "")
            )
    if "agreement" in report and report["agreement"]["ARI"] is not None:
        lines.append(
            "agreement of clusters of voices and of faces: ARI "
            f"{report['agreement']['ARI']:.3f}"
        )
    if "oracle" in report:
        known = report["oracle"]
        lines.append(
            f"true speakers (for this report only): NMI {known['NMI']:.3f}, "
            f"purity {known['purity']:.3f}, ARI {known['ARI']:.3f}"
        )
    lines += [f"WARNING: {text}" for text in found["warnings"]]
    return "\n".join(lines)


def write(hparams, utterances, embeddings, labels, report, count=None):
    """Writes labels, report and the page of clusters; returns the report.

    ``labels`` has the class of each embedding, -1 for none [rows]. ``count`` is
    the size of the training set if ``utterances`` are only a part of it.
    """
    folder = hparams["output_folder"]
    page = os.path.join(folder, PAGE_NAME)
    with contextlib.suppress(FileNotFoundError):
        os.remove(page)  # it would speak of other labels
    place = find_embeddings_folder(hparams)
    # labels that are corrected have their own faces and embeddings
    if hparams["face_model_folder"] is not None and hparams["edits"] is None:
        place = os.path.join(folder, JOINT)
        utterances = with_faces(hparams)
    place = os.path.relpath(place, folder)
    report = write_labels(
        folder,
        utterances,
        embeddings.ids,
        labels,
        embeddings.meta["made"]["embeddings"],
        {"embeddings_folder": place, **report},
        count,
    )
    print(describe(report))
    print(os.path.join(folder, CSV_NAME))
    if hparams["listen"]:
        write_clusters(
            folder,
            utterances,
            embeddings.ids,
            labels,
            embeddings.matrix,
            hparams["listen"],
        )
        print(page)
    return report


def main(argv):
    """Extracts, clusters, writes; returns the report, if it came to that."""
    hparams_file, run_opts, hparams, overrides = load_experiment(argv)
    check_settings(hparams)
    distributed.start(run_opts)
    if hparams["edits"] is not None:
        if distributed.rank() > 0:
            return None
        before, *corrected = correct(hparams)
        count = before.report["labels"]["utterances"]
        return write(hparams, before.utterances, *corrected, count)
    utterances = find_utterances(hparams)
    if hparams["face_model_folder"] is not None:
        check_faces(hparams)
    settings = settings_of(hparams_file, overrides)
    embeddings = embed(hparams, run_opts, utterances, settings["augmentation"])
    if hparams["face_model_folder"] is not None:
        embeddings = embed_faces(hparams, run_opts, embeddings)
    if embeddings is None:
        print(
            f"Part {hparams['part_idx']} of {hparams['num_parts']} is done. "
            "The job that does the last missing part makes the labels."
        )
        return None
    groups = find_channels(hparams, run_opts, utterances, embeddings)
    together = getattr(hparams["clusterer"], "distributed", False)
    if distributed.rank() > 0 and not together:
        return None
    embeddings, removed = without_channels(embeddings, groups)
    found = cluster(hparams, embeddings, removed)
    if distributed.rank() > 0:
        return None
    return write(hparams, utterances, embeddings, *found)


if __name__ == "__main__":
    run_script(main)
