r"""Measures an exported model on trial lists: EER, minDCF, DET curve.

To run this recipe::

    > python verify.py hparams/verify.yaml --model_folder results/moco/1/model \
        --trials trials.txt

With several lists, normalized against a cohort of unlabelled audio::

    > python verify.py hparams/verify.yaml --model_folder results/moco/1/model \
        --trials "[easy.txt, hard.txt]" --cohort /audio

With PLDA and calibrated scores, both learned from pseudo-labels of unlabelled
audio, and error rates by condition::

    > python verify.py hparams/verify.yaml --model_folder results/moco/1/model \
        --trials trials.txt --pseudo_labels labels/pseudo_labels.csv \
        --data_folder /audio --plda_rank 100 --calibrate raw \
        --quality_measures "[duration]" --conditions conditions.csv

With faces, which lie beside the audio of the lists or are named in a CSV::

    > python verify.py hparams/verify.yaml --model_folder RUN/model \
        --face_model_folder RUN/face_model --trials trials.txt

Labels of trial lists are read here and for ``dev_trials``; nothing learns from
them. Each list gets a folder in ``<output_folder>`` with metrics.json,
scores.txt, embeddings.npy and det.png. A list without labels gets scores and no
error rates. The threshold of the first labelled list is stored in the model's
folder, unless ``write_threshold`` is False or ``subtract_mean`` is given.
"""

import concurrent.futures
import functools
import importlib.util
import logging
import os
from typing import NamedTuple

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

import numpy as np
import torch
from speechbrain_ssl import hub
from speechbrain_ssl.card import suggest_threshold
from speechbrain_ssl.checks import (
    check_keys,
    each,
    number,
    one_of,
    optional,
    whole,
)
from speechbrain_ssl.clustering.quality import centroids
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import Utterances, read_annotation
from speechbrain_ssl.dataio.augmentation import stack_draws
from speechbrain_ssl.dataio.embedding import (
    describe as describe_audio,
    try_files,
)
from speechbrain_ssl.evaluation import metrics, scoring
from speechbrain_ssl.evaluation.calibration import Calibrator, split_classes
from speechbrain_ssl.evaluation.faces import (
    FaceScores,
    embed_face_cohort,
    read_faces,
)
from speechbrain_ssl.evaluation.fusion import read_scored
from speechbrain_ssl.evaluation.plda import PLDA
from speechbrain_ssl.evaluation.trials import (
    read_models,
    read_trials,
    trial_paths,
)
from speechbrain_ssl.evaluation.verification import (
    LABEL_USE,
    read_conditions,
    results_folder,
    verify,
)
from speechbrain_ssl.files import read_json
from speechbrain_ssl.loading import face_size_of, load_encoder
from speechbrain_ssl.options import load_experiment, settings_of
from speechbrain_ssl.pseudo_labels.extract import (
    embed_utterances,
    encoder_hash,
    load,
)
from speechbrain_ssl.pseudo_labels.labels import TRAINED_ON, read_labels
from speechbrain_ssl.script import run_script

from speechbrain.utils.distributed import infer_device

logger = logging.getLogger(__name__)

SCORES = {
    "raw": "",
    "z_norm": " with Z-norm",
    "t_norm": " with T-norm",
    "s_norm": " with S-norm",
    "as_norm": " with AS-norm",
    "crops": ", pairs of crops and whole files",
    "face": ", faces",
    "face_as_norm": ", faces with AS-norm",
    "fused": ", voices and faces",
    "fused_as_norm": ", voices and faces with AS-norm",
    "plda": " with PLDA",
    "calibrated": ", calibrated",
}


class Clusters(NamedTuple):
    """Unlabelled utterances, in clusters, with embeddings of the model."""

    embeddings: np.ndarray  # of all utterances [rows, emb_dim]
    classes: np.ndarray  # cluster of each, -1 for none [rows]
    seconds: np.ndarray  # how much of each was embedded [rows]
    utterances: Utterances  # the utterances in clusters
    places: np.ndarray  # row of each there, -1 without a cluster [rows]


class Cohort(NamedTuple):
    """Unlabelled utterances for the normalization of scores."""

    # of the utterances that could be embedded [utterances, emb_dim]
    embeddings: torch.Tensor
    paths: list  # their files [utterances]


def check_settings(hparams):
    """Checks keys, trial lists and their files before anything is computed."""
    check_keys(
        hparams,
        batch_seconds=number(above=0),
        write_threshold=one_of(True, False),
        crops=whole(0),
        crop_seconds=number(above=0),
        costs=each(number(above=0), 2),
        cohort_means=one_of(True, False),
        cohort_size=whole(1),
        norms=each(one_of(*scoring.NORMS)),
        top_n=optional(whole(1)),
        plda_rank=optional(whole(1)),
        back_end_size=whole(1),
        face_weight=number(0, 1),
    )
    places = hparams["data_root"], hparams["output_folder"]
    check_lists(lists_of(hparams), *places, models_of(hparams))
    check_back_ends(hparams)


def lists_of(hparams):
    """Paths of the trial lists; the key may have one path or several."""
    lists = hparams["trials"]
    return [lists] if isinstance(lists, str) else list(lists)


def models_of(hparams):
    """Files of the names that stand for several files, or None."""
    path = hparams["enrolment"]
    return None if path is None else read_models(path)


def check_face_settings(hparams):
    """Refuses settings that only voices have, for a face encoder."""
    keys = ("face_model_folder", "crops", "pseudo_labels", "cohort_means")
    for key in keys:
        if hparams[key]:
            raise ValueError(
                f"model_folder is a face encoder, and {key} is for voices. "
                "Leave it out, or give a voice encoder as model_folder."
            )


def check_lists(lists, data_root, output_folder, models=None):
    """Checks trial lists, their audio files and the names of their results.

    ``data_root`` is the folder that paths start from, ``models`` the files of
    names that stand for several files.
    """
    folders = {}
    for list_path in lists:
        trials = read_trials(list_path)
        trial_paths(trials, list_path, data_root, models)
        print(
            f"{list_path}: {len(trials.enrol)} trials, lines `{trials.layout}`"
        )
        folder = results_folder(output_folder, list_path)
        other = folders.setdefault(folder, list_path)
        if other != list_path or lists.count(list_path) > 1:
            raise ValueError(
                f"The results of {other} and {list_path} would both be "
                f"written to {folder}. Rename one of the lists."
            )


def check_back_ends(hparams):
    """Refuses settings of back ends that do not fit together."""
    score, measures = hparams["calibrate"], hparams["quality_measures"]
    learns = hparams["plda_rank"] is not None or score is not None
    is_asked = learns or hparams["cohort_means"]
    rules = [
        (
            not learns or hparams["subtract_mean"] is None,
            "plda_rank and calibrate learn from embeddings as they are: set "
            "subtract_mean to null",
        ),
        (
            not hparams["cohort_means"] or hparams["cohort"] is None,
            "cohort_means makes the cohort of pseudo_labels: set cohort to "
            "null",
        ),
        (
            score in (None, "raw", *scoring.NORMS, "plda"),
            f"calibrate must be raw, {', '.join(scoring.NORMS)}, plda or "
            f"null, not {score!r}",
        ),
        (
            is_asked == (hparams["pseudo_labels"] is not None),
            "pseudo_labels are what plda_rank, calibrate and cohort_means "
            "need: give the labels and one of these, or none of them",
        ),
        (
            score not in scoring.NORMS or hparams["cohort"] is not None,
            f"calibrate is {score}, which needs a cohort",
        ),
        (
            score != "plda" or hparams["plda_rank"] is not None,
            "calibrate is plda, which needs a plda_rank, e.g. 100",
        ),
        (
            not measures or score is not None,
            "quality_measures are for calibrated scores: set calibrate",
        ),
        (
            "cohort_mean" not in measures or hparams["cohort"] is not None,
            "the quality measure cohort_mean needs a cohort",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise ValueError(message + ".")


def cohort_segments(cohort, cohort_size, data_folder):
    """Files of the cohort, and the first and last frame to use of each.

    ``cohort`` is a folder of audio or an annotation. At most ``cohort_size``
    utterances are taken, evenly spread over the sorted ones. A last frame of
    None is the end of the file.
    """
    if os.path.isdir(cohort):
        paths, left_out = audio.find(cohort)
        if left_out:
            logger.info("The cohort %s: %s", cohort, audio.describe(left_out))
        segments = [(path, (0, None)) for path in paths]
    elif os.path.isfile(cohort):
        rows = read_annotation(cohort, data_root=data_folder)
        spans = zip(rows.start.tolist(), rows.stop.tolist())
        segments = sorted(zip(rows.wavs(), spans))
    else:
        raise FileNotFoundError(
            f"The cohort {cohort} is neither a folder of audio nor a CSV file."
        )
    taken = min(cohort_size, len(segments))
    chosen = [segments[n * len(segments) // taken] for n in range(taken)]
    paths, spans = zip(*chosen)
    return list(paths), list(spans)


def embed_cohort(hparams, encode, settings):
    """Embeds the cohort; files that cannot be embedded are left out.

    Gives None without a cohort. ``settings`` are those of ``try_files``.
    """
    if hparams["cohort_means"]:
        return cohort_of_means(hparams)
    if hparams["cohort"] is None:
        return None
    paths, spans = cohort_segments(
        hparams["cohort"], hparams["cohort_size"], hparams["data_folder"]
    )
    scoring.check_top_n(top_n_of(hparams, paths), len(paths))
    found = try_files(encode, paths, spans=spans, **settings)
    kept = [n for n in range(len(paths)) if n not in found.failed]
    if found.failed:
        logger.warning(
            "%d of %d files of the cohort cannot be embedded and are left "
            "out. The first one: %s",
            len(found.failed),
            len(paths),
            found.failed[min(found.failed)],
        )
        scoring.check_top_n(top_n_of(hparams, kept), len(kept))
    return Cohort(found.rows[kept], [paths[n] for n in kept])


def embed_faces_of_cohort(hparams, encode, size, device):
    """Embeddings of the faces of the cohort [faces, emb_dim], or None."""
    if hparams["cohort"] is None:
        return None
    return embed_face_cohort(
        encode,
        size,
        hparams["cohort"],
        hparams["cohort_size"],
        hparams["data_folder"],
        device,
    )


def face_scorers(hparams, device, cohort):
    """Scorers of faces, and of voices and faces together, for ``verify``.

    There are none without a ``face_model_folder``. ``cohort`` has the voices of
    the cohort, or is None.
    """
    folder = hparams["face_model_folder"]
    if folder is None:
        return {}
    model = load_encoder(folder, device, hparams["trust"])
    size = face_size_of(model)
    if size is None:
        raise ValueError(
            f"face_model_folder: {folder} is no face encoder. Name the "
            "face_model of an audio-visual training, or the model of a "
            "training on faces."
        )
    cohorts, top_n = None, hparams["top_n"] or hparams["cohort_size"]
    if cohort is not None and "as_norm" in hparams["norms"]:
        own = embed_faces_of_cohort(hparams, model.encode_batch, size, device)
        if own is not None:
            cohorts = cohort.embeddings, own
    return FaceScores(
        model.encode_batch,
        size,
        read_faces(hparams["faces"]),
        hparams["face_weight"],
        device,
        cohorts,
        top_n,
    ).scorers()


def top_n_of(hparams, cohort):
    """Number of cohort scores used: ``top_n`` if anything needs it, or all."""
    users = *hparams["norms"], hparams["calibrate"]
    is_used = "as_norm" in users or "cohort_mean" in hparams["quality_measures"]
    return (hparams["top_n"] if is_used else None) or len(cohort)


def cohort_of_means(hparams):
    """A cohort of the mean directions of the clusters, without files."""
    clusters, mean = read_clusters(hparams), mean_embedding(hparams)
    chosen = np.flatnonzero(clusters.classes >= 0)
    _, classes = np.unique(clusters.classes[chosen], return_inverse=True)
    rows = np.asarray(clusters.embeddings[chosen], np.float32)
    rows = rows if mean is None else rows - mean.numpy()
    means, _ = centroids(rows, classes)
    scoring.check_top_n(top_n_of(hparams, means), len(means))
    return Cohort(torch.from_numpy(means), [])


def mean_embedding(hparams):
    """Mean of the embeddings in ``subtract_mean`` [emb_dim], or None."""
    folder = hparams["subtract_mean"]
    if folder is None:
        return None
    matrix = embeddings_of(hparams, folder, "subtract_mean").matrix
    return torch.from_numpy(matrix.mean(0, dtype=np.float64)).float()


def embeddings_of(hparams, folder, key):
    """Reads embeddings; they must be of the model that is verified.

    ``key`` is the setting that names the folder, for the message.
    """
    found, model = load(folder), hparams["model_folder"]
    if found.meta["settings"]["encoder"] != encoder_hash(model):
        raise ValueError(
            f"The embeddings in {folder} are not of the model {model}. Embed "
            f"the utterances with it (speechbrain-ssl embed {model} TRAIN_CSV "
            f"--data_root {hparams['data_folder']} --output_folder FOLDER) and "
            f"give that folder as {key}."
        )
    return found


def without_mean(encode, mean):
    """Wraps an encoder: a mean [emb_dim], or None, is subtracted."""
    if mean is None:
        return encode

    def embed(wavs, wav_lens):
        embeddings = encode(wavs, wav_lens)
        return embeddings - mean.to(embeddings.device)

    return embed


def score_of_crops(hparams, encode, settings):
    """Scores that average pairs of crops and whole files, as for WavLM.

    The mean cosine of all pairs of crops of two sides is the product of the
    means of their unit embeddings (V. Miara et al., Interspeech 2024,
    arXiv:2406.02285: 15 crops of 4 s).
    """
    count, seconds, means = hparams["crops"], hparams["crop_seconds"], {}

    def spans_of(path):
        header = audio.info(path)
        length = min(round(seconds * header.sample_rate), header.frames)
        starts = np.linspace(0, header.frames - length, count).astype(int)
        return [(int(start), int(start) + length) for start in starts]

    def embed(paths):
        spans = [span for path in paths for span in spans_of(path)]
        files = [path for path in paths for _ in range(count)]
        found = try_files(encode, files, spans=spans, strict=True, **settings)
        rows = scoring.unit(found.rows)
        means.update(zip(paths, rows.unflatten(0, (-1, count)).mean(1)))

    def score(embeddings, parts, trials):
        new = {path for own in parts for path in own} - means.keys()
        if new:
            embed(sorted(new))
        rows = torch.stack(
            [torch.stack([means[p] for p in own]).mean(0) for own in parts]
        )
        pairs = scoring.pair_products(rows, trials.enrol, trials.test)
        whole = scoring.cosine_scores(embeddings, trials.enrol, trials.test)
        return (pairs + whole) / 2

    return score


def training_files(model_folder):
    """Audio that a model was trained on, if its run is beside it."""
    run = os.path.dirname(os.path.abspath(model_folder))
    settings = os.path.join(run, "hyperparams.yaml")
    labels = os.path.join(run, TRAINED_ON)
    annotation = os.path.join(run, "save", "train.csv")
    try:
        if not os.path.isfile(annotation) and os.path.isfile(labels):
            annotation = read_json(labels)["labels"]
        if not (os.path.isfile(annotation) and os.path.isfile(settings)):
            return []
        root = settings_of(settings).get("data_folder")
        return list(read_annotation(annotation, data_root=root).wavs())
    except (OSError, KeyError, TypeError, ValueError) as error:
        logger.warning(
            "Trial files in the training set cannot be counted: %s", error
        )
        return []


def read_clusters(hparams):
    """Reads pseudo-labels and the embeddings of the model that is verified."""
    path = hparams["pseudo_labels"]
    labels = read_labels(path, data_root=hparams["data_folder"])
    folder = hparams["embeddings_folder"]
    if folder is None:
        place = os.path.dirname(os.path.abspath(path))
        name = (labels.report or {}).get("embeddings_folder", "embeddings")
        folder = os.path.join(place, name)
    found = embeddings_of(hparams, folder, "embeddings_folder")
    rows = {name: row for row, name in enumerate(labels.utterances.ids())}
    places = np.array([rows.get(name, -1) for name in found.ids])
    if not (places >= 0).any():
        raise ValueError(
            f"None of the utterances in {path} has an embedding in {folder}."
        )
    most = found.meta["settings"]["max_seconds"] or np.inf
    return Clusters(
        found.matrix,
        np.where(places >= 0, labels.classes[places], -1),
        np.minimum(labels.utterances.durations.numpy()[places], most),
        labels.utterances,
        places,
    )


def embed_augmented(encode, clusters, rows, augmentation, rate, device):
    """Embeds utterances again, each with its own augmentation.

    Utterances of a cluster often come from one recording; those of a trial do
    not. Without augmentation, scores within clusters would be too high.
    ``rows`` are the rows of ``clusters`` to embed; ``augmentation`` is
    prepared, and ``rate`` is that of the encoder in Hz. Gives embeddings [rows,
    emb_dim].
    """
    rng = np.random.default_rng(augmentation.seed)

    def embed(wavs, lengths):
        draws = stack_draws([augmentation.draw(rng) for _ in wavs])
        draws = {name: draw.to(wavs.device) for name, draw in draws.items()}
        return encode(augmentation.apply(wavs, draws), lengths)

    return embed_utterances(
        embed,
        clusters.utterances,
        rate,
        max_seconds=clusters.seconds[rows].max(),
        device=device,
        rows=clusters.places[rows],
    )


def make_back_ends(hparams, model, device, cohort):
    """Learns PLDA and calibration from pseudo-labels.

    One half of the clusters calibrates; PLDA then learns from the other one,
    because its scores of the clusters it was trained on are too good.
    ``cohort`` may be None. Gives the back ends of ``verify`` by name.
    """
    if hparams["pseudo_labels"] is None:
        return {}
    clusters, score = read_clusters(hparams), hparams["calibrate"]
    first, others = split_classes(clusters.classes, hparams["back_end_size"])
    scores, back_ends = base_scores(hparams["top_n"]), {}

    augmentation = hparams["augmentation"]
    rate = model.audio_normalizer.sample_rate
    if augmentation is not None:  # once: the RIRs take seconds
        augmentation.prepare(rate, clusters.utterances)
        augmentation.to(device)

    def augmented(rows):
        if augmentation is None:
            return clusters.embeddings[rows]
        return embed_augmented(
            model.encode_batch, clusters, rows, augmentation, rate, device
        )

    if hparams["plda_rank"] is not None:
        rows = others if score else np.sort(np.r_[first, others])
        plda = PLDA(hparams["plda_rank"])
        plda.fit(augmented(rows), clusters.classes[rows])
        scores["plda"] = lambda rows, enrol, test, _: plda(rows, enrol, test)
        back_ends["plda"] = lambda rows, _, trials: plda(
            rows, trials.enrol, trials.test
        )
    if score is None:
        return back_ends
    calibrator = Calibrator(
        scores[score], hparams["quality_measures"], hparams["top_n"]
    )
    calibrator.fit(
        augmented(first),
        clusters.seconds[first],
        clusters.classes[first],
        without(cohort, clusters, first),
    )
    rows_of_cohort = None if cohort is None else cohort.embeddings
    back_ends["calibrated"] = lambda rows, parts, trials: calibrator(
        rows, seconds_of(parts), trials.enrol, trials.test, rows_of_cohort
    )
    return back_ends


def base_scores(top_n):
    """Scores that need no training, as a Calibrator calls them."""

    def raw(rows, enrol, test, cohort):
        return scoring.cosine_scores(rows, enrol, test)

    def normalized(norm, rows, enrol, test, cohort):
        scores = scoring.cosine_scores(rows, enrol, test)
        count = top_n or len(cohort)
        sides = enrol, test
        return scoring.normalize(scores, *sides, rows, cohort, norm, count)

    norms = {n: functools.partial(normalized, n) for n in scoring.NORMS}
    return {"raw": raw, **norms}


def without(cohort, clusters, rows):
    """Embeddings of a cohort without the clusters of some rows, or None.

    Pseudo-label trials are made of these rows.
    """
    if cohort is None:
        return None
    wavs = {
        os.path.abspath(clusters.utterances.row(place)["wav"])
        for place in clusters.places[rows].tolist()
    }
    kept = [os.path.abspath(file) not in wavs for file in cohort.paths]
    logger.info(
        "The trials that calibrate see %d of the %d cohort files: the others "
        "are of their own clusters.",
        sum(kept),
        len(kept),
    )
    return cohort.embeddings[np.flatnonzero(kept)]


def seconds_of(parts):
    """Seconds of audio of each name, over all of its files [names]."""

    def seconds(paths):
        headers = map(audio.info, paths)
        return sum(header.frames / header.sample_rate for header in headers)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return np.fromiter(pool.map(seconds, parts), np.float64, len(parts))


def describe(list_path, summary, folder):
    """Lines about a list: its audio, then the results of each kind of score.

    ``summary`` is what ``verify`` returned, ``folder`` where the results are.
    """
    name, lines = os.path.basename(list_path), []
    if "audio" in summary:
        audio_lines = describe_audio(*summary["audio"].values())
        lines += [f"{name}: {line}" for line in audio_lines]
    for where, count in summary.get("known_files", {}).items():
        if count:
            lines.append(
                f"{name}: warning: {count} files are in the {where} too, so "
                "that these figures are not those of unknown recordings"
            )
    for kind, ending in SCORES.items():
        found = summary.get(kind)
        if found is None:
            continue
        if found["EER"] is None:
            lines.append(
                f"{name}{ending}: scores of "
                f"{found['trials']} trials of {found['files']} files, no "
                f"error rates as the list has no labels; in {folder}"
            )
            continue
        lines.append(
            f"{name}{ending}: EER {found['EER']:.2f} % "
            f"(95 % interval {found['EER_low']:.2f} to "
            f"{found['EER_high']:.2f}), minDCF {found['minDCF_0.01']:.3f} at "
            f"p=0.01 and {found['minDCF_0.05']:.3f} at p=0.05"
        )
        if "Cllr" in found:
            lines.append(
                f"  actDCF {found['actDCF_0.01']:.3f} at p=0.01 and "
                f"{found['actDCF_0.05']:.3f} at p=0.05, Cllr "
                f"{found['Cllr']:.3f}, minCllr {found['minCllr']:.3f}"
            )
        lines.append(
            f"  {found['trials']} trials ({found['targets']} targets) of "
            f"{found['files']} files; results in {folder}"
        )
        if "without_score" in found:
            lines.append(
                f"  {found['without_score']} trials without a face on both "
                "sides are left out"
            )
        for condition, part in found.get("conditions", {}).items():
            rate = "-" if part["EER"] is None else f"{part['EER']:.2f}"
            lines.append(
                f"  {condition}: EER {rate} %, {part['trials']} trials "
                f"({part['targets']} targets)"
            )
    return "\n".join(lines)


def store_threshold(folder, summary, list_path):
    """Stores the threshold of a labelled list beside the model.

    Returns a line that says so, or why that was not possible.
    """
    name, raw = os.path.basename(list_path), summary["raw"]
    if hub.is_name(folder):
        return f"No threshold is stored: {folder} is not a local folder."
    try:
        suggest_threshold(folder, raw, name, summary.get("known_files"))
    except OSError as error:
        return f"No threshold is stored in {folder}: {error}"
    return (
        f"Threshold {raw['threshold']:.4f} on the cosine (raw scores, EER of "
        f"{name}) is stored in {folder}."
    )


def plot(folder, summary):
    """Draws the DET curves of one list, if matplotlib is installed.

    Scores of earlier runs that ``summary`` does not have stay in the folder.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.info("matplotlib is not installed: no DET curve is drawn.")
        return
    from speechbrain_ssl.report.plots import det_plot, save

    curves = {}
    for name in SCORES:
        file = "scores.txt" if name == "raw" else f"scores_{name}.txt"
        path = os.path.join(folder, file)
        if summary.get(name) is not None:
            trials, scores = read_scored(path)
            if trials.targets.min() == trials.targets.max():
                continue  # faces of one kind of trials only
            points = metrics.error_rates(scores, trials.targets)
            curves[name] = points.false_alarm, points.miss
    save(det_plot(curves), os.path.join(folder, "det.png"))


def main(argv):
    """Verifies the model on each list; returns the summaries by list."""
    _, run_opts, hparams, _ = load_experiment(argv)
    check_settings(hparams)
    lists, models = lists_of(hparams), models_of(hparams)
    conditions = None
    if hparams["conditions"] is not None:
        conditions = read_conditions(hparams["conditions"])
    device = run_opts["device"] or infer_device()
    model = load_encoder(hparams["model_folder"], device, hparams["trust"])
    settings = {
        "sample_rate": model.audio_normalizer.sample_rate,
        "batch_seconds": hparams["batch_seconds"],
        "device": device,
        "progress": not run_opts["noprogressbar"],
    }
    face_size = face_size_of(model)
    known = {"training set": training_files(hparams["model_folder"])}
    encode = without_mean(model.encode_batch, mean_embedding(hparams))
    if face_size is None:
        cohort = embed_cohort(hparams, encode, settings)
    else:
        check_face_settings(hparams)
        rows = embed_faces_of_cohort(hparams, encode, face_size, device)
        cohort = None if rows is None else Cohort(rows, [])
    scorers = face_scorers(hparams, device, cohort)
    if hparams["crops"]:
        scorers["crops"] = score_of_crops(hparams, encode, settings)
    if cohort is not None:
        known["cohort"] = cohort.paths
    back_ends = make_back_ends(hparams, model, device, cohort)
    label_use = LABEL_USE
    if back_ends:
        label_use += (
            f" What learns ({', '.join(back_ends)}) learned from the "
            f"pseudo-labels {hparams['pseudo_labels']}."
        )
    summaries, cache = {}, {}
    stores = hparams["write_threshold"]  # until a list has labels
    if stores and hparams["subtract_mean"] is not None:
        print(
            "No threshold is stored: the commands that would use it do not "
            "subtract a mean (subtract_mean)."
        )
        stores = False
    for list_path in lists:
        summary = summaries[list_path] = verify(
            encode,
            list_path,
            hparams["output_folder"],
            data_root=hparams["data_root"],
            cohort=None if cohort is None else cohort.embeddings,
            top_n=top_n_of(hparams, cohort.embeddings if cohort else ()),
            cache=cache,
            back_ends=back_ends,
            conditions=conditions,
            label_use=label_use,
            models=models,
            known=known,
            scorers=scorers,
            costs=tuple(hparams["costs"]),
            norms=hparams["norms"],
            face_size=face_size,
            **settings,
        )
        folder = results_folder(hparams["output_folder"], list_path)
        if summary["raw"]["EER"] is not None:
            plot(folder, summary)
            if stores:
                print(
                    store_threshold(hparams["model_folder"], summary, list_path)
                )
                stores = False
        print(describe(list_path, summary, folder))
    return summaries


if __name__ == "__main__":
    run_script(main)
