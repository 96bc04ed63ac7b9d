r"""Writes the annotation of VoxCeleb2 and the trial lists of VoxCeleb1.

The training scripts call ``prepare_voxceleb_ssl``. Make the trial lists once
before::

    > python voxceleb_ssl_prepare.py trials /corpora/voxceleb1 trials

and for verification with faces a CSV of the faces of their files::

    > python voxceleb_ssl_prepare.py faces /corpora/unzippedFaces faces.csv \\
        trials/vox1_O.txt

The layout is that of the unpacked archives: ``dev/aac/id00012/VIDEO/00001.m4a``
(or ``dev/wav/...`` after a conversion) and ``wav/id10270/VIDEO/00001.wav``,
with or without the folders ``dev`` and ``test``. A path of VoxCeleb, and
therefore ID and wav, contains the speaker. Self-supervised training does not
read it. This script uses it to exclude test speakers, and ``speaker_numbers``
uses it for train_supervised.yaml.
"""

import argparse
import csv
import functools
import http.client
import logging
import os
import re
import urllib.request

import numpy as np
from audio_folder_prepare import annotation_row, prepare_audio_folder
from speechbrain_ssl.dataio import audio, faces
from speechbrain_ssl.evaluation.trials import read_trials
from speechbrain_ssl.files import write_whole
from speechbrain_ssl.help import one_line

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

BASE_URL = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta"
# file name and number of trials of the cleaned lists
LISTS = {
    "O": ("veri_test2.txt", 37_611),
    "E": ("list_test_all2.txt", 579_818),
    "H": ("list_test_hard2.txt", 550_894),
}
DEPTH = 3  # largest number of folders above those of the speakers

SPEAKER = re.compile(r"id\d{5}")
SPEAKER_FOLDER = re.compile(r"(?:^|/)(id\d{5})/")
UTTERANCE = re.compile(
    r"(?P<above>(?:.*(?:/|::))?)(?P<key>(?P<speaker>id\d{5})/[^/]+/\d+)\.[^./]+"
)
TEST_SPLIT = re.compile(r"(?:^|[/_])test[/_]")
VOXCELEB1 = {f"id{number}" for number in range(10001, 11252)}
VOXCELEB1_O = {f"id{number}" for number in range(10270, 10310)}


def prepare_voxceleb_ssl(
    data_folder,
    save_csv,
    min_seconds=1.0,
    held_out=None,
    allow_test_speakers=False,
    num_workers=None,
    faces_folder=None,
):
    """Writes an annotation of the training utterances of VoxCeleb.

    The columns are ID, duration, wav, start, stop; the ID is the path from the
    speaker on, without extension: moving or converting the files does not
    change it. Files that are not used (test split, copies of an utterance in
    a second format, damaged files, ...) are listed with the reason in
    skipped.csv in the same folder.

    Arguments
    ---------
    data_folder : str
        VoxCeleb2, or any folder above those of the speakers.
    save_csv : str
        The annotation to write.
    min_seconds : float
        Shorter files are left out.
    held_out : list of str
        Trial lists whose speakers must not be in the training set. None: the
        40 speakers of VoxCeleb1-O, which needs no list.
    allow_test_speakers : bool
        Whether to allow these speakers. Error rates on them are then invalid.
    num_workers : int
        Number of threads. None: four per processor.
    faces_folder : str
        Face tracks or crops, which become the column ``face``; see
        ``faces_of``. None: no faces.

    Returns
    -------
    dict
        Number of files by outcome, as from ``prepare_audio_folder``.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the folder has no usable audio in the layout of VoxCeleb, or has
        test speakers.
    OSError
        If the folder has m4a files and torchcodec is not installed.

    Example
    -------
    >>> import soundfile, torch
    >>> folder = getfixture("tmpdir")
    >>> path = folder.ensure("dev/wav/id00012/21Uxsk56VDQ/00001.wav")
    >>> soundfile.write(path, torch.rand(16000).numpy(), 16000)
    >>> prepare_voxceleb_ssl(folder, folder / "train.csv")
    {'usable': 1}
    """
    speakers = VOXCELEB1_O if held_out is None else speakers_of(held_out)
    find = functools.partial(
        find_utterances,
        held_out=speakers,
        allow_test_speakers=allow_test_speakers,
    )
    return prepare_audio_folder(
        data_folder,
        save_csv,
        min_seconds=min_seconds,
        num_workers=num_workers,
        find=find,
        row=utterance_row,
        find_faces=faces_folder
        and functools.partial(faces_of, faces_folder=faces_folder),
    )


def faces_of(paths, faces_folder):
    """Finds the faces of utterances in the layouts of VoxCeleb.

    VoxCeleb2 has a video of the cropped face for each utterance,
    ``dev/mp4/id00012/VIDEO/00001.mp4``; crops made of it may lie in a folder
    of that name. VoxCeleb1 has images for each video,
    ``unzippedFaces/NAME/1.6/VIDEO/*.jpg``, where ``vox1_meta.csv`` in the same
    folder or above gives the name of a speaker. The speaker is only a part of
    these paths: nothing of it gets into the annotation that the path of the
    audio does not have.

    Arguments
    ---------
    paths : list of str
        Audio files.
    faces_folder : str
        The folder of the faces, or one above it.

    Returns
    -------
    dict of str to str
        Path of an audio file -> its face; files without a face are left out.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, or no utterance has a face in it.
    """
    if not os.path.isdir(faces_folder):
        raise FileNotFoundError(f"There is no folder {faces_folder} of faces.")
    root = os.path.abspath(faces_folder)
    names, places = speaker_names(root), face_places(root)
    found = {}
    for path in paths:
        key = UTTERANCE.fullmatch(path.replace(os.sep, "/"))["key"]
        speaker, video, clip = key.split("/")
        name = names.get(speaker, speaker)
        candidates = [
            f"{place}/{speaker}/{video}/{clip}{extension}"
            for place in places
            for extension in ("", *faces.VIDEOS, *faces.IMAGES)
        ]
        candidates += [f"{place}/{name}/1.6/{video}" for place in places]
        face = next(
            (p for p in candidates if os.path.exists(p) and faces.is_face(p)),
            None,
        )
        if face is not None:
            found[path] = face
    if not found:
        raise FileNotFoundError(
            f"{root} has no face of the {len(paths)} utterances. Expected "
            "idNNNNN/VIDEO/NNNNN.mp4, idNNNNN/VIDEO/NNNNN/*.jpg or, with "
            "vox1_meta.csv, NAME/1.6/VIDEO/*.jpg."
        )
    return found


def list_faces(faces_folder, save_csv, lists):
    """Writes the faces of the files of trial lists, for ``verify.py``.

    Arguments
    ---------
    faces_folder : str
        As in ``faces_of``.
    save_csv : str
        Where to write a CSV with the columns ``ID``, a file as the lists name
        it, and ``face``; files without a face are left out.
    lists : list of str
        Trial lists.

    Raises
    ------
    ValueError
        If a file of a list is not in a tree of VoxCeleb.
    """
    files = {name for path in lists for name in read_trials(path).files}
    for name in sorted(files):
        if not UTTERANCE.fullmatch(name):
            raise ValueError(
                f"{name} of the trial lists is not SPEAKER/VIDEO/CLIP of "
                "VoxCeleb, such as id10270/5r0dWxy17C8/00001.wav."
            )
    found = faces_of(sorted(files), faces_folder)
    with write_whole(save_csv) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("ID", "face"), *found.items()])
    logger.info(
        "%s: faces of %d of %d files.", save_csv, len(found), len(files)
    )


def face_places(folder):
    """A folder and those in it, down to ``DEPTH``, above the speakers."""
    places = [folder]
    for place in places:
        relative = os.path.relpath(place, folder)
        depth = 0 if relative == "." else relative.count(os.sep) + 1
        entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        inner = [e.name for e in entries if e.is_dir() and e.name[0] != "."]
        are_speakers = any(SPEAKER.fullmatch(name) for name in inner)
        are_names = any(
            os.path.isdir(os.path.join(place, name, "1.6"))
            for name in inner[:10]
        )
        if depth < DEPTH and not are_speakers and not are_names:
            places += [os.path.join(place, name) for name in inner]
    return places


def speaker_names(folder):
    """Names of the speakers of VoxCeleb1, by ID, from ``vox1_meta.csv``."""
    for place in (folder, os.path.dirname(folder)):
        path = os.path.join(place, "vox1_meta.csv")
        if os.path.isfile(path):
            with open(path, newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file, delimiter="\t")
                return {row["VoxCeleb1 ID"]: row["VGGFace1 ID"] for row in rows}
    return {}


def find_utterances(data_folder, held_out=(), allow_test_speakers=False):
    """Finds the training files, one for each utterance.

    ``held_out`` are test speakers. Gives sorted paths, and the reason of each
    other file by its path.
    """
    files, problems = audio.find(data_folder)
    chosen, speakers = {}, set()
    # the format that is fastest to read comes first
    files.sort(key=lambda path: (_format_rank(path), path))
    for path in files:
        name = os.path.relpath(path, data_folder)
        found = UTTERANCE.fullmatch(name)
        if not found:
            problems[path] = "not VoxCeleb: expected idNNNNN/VIDEO/NNNNN.*"
        elif TEST_SPLIT.search(found["above"]):
            problems[path] = "test split: not used for training"
        elif found["key"] in chosen:
            problems[path] = f"duplicate: {chosen[found['key']]} is used"
        else:
            chosen[found["key"]] = name
            speakers.add(found["speaker"])
    if not chosen:
        raise ValueError(
            f"{data_folder} has {len(files)} audio files, but no training "
            "file in the layout of VoxCeleb, e.g. "
            "dev/aac/id00012/VIDEO/00001.m4a. Set data_folder to the folder "
            "that contains dev or the speakers."
        )
    _check_speakers(speakers, held_out, allow_test_speakers)
    # in the order of the IDs, wherever the files are
    paths = [os.path.join(data_folder, chosen[key]) for key in sorted(chosen)]
    _check_torchcodec(paths)
    return paths, problems


def utterance_row(path, file):
    """Row of the annotation.

    Its ID is the path from the speaker on, without extension, so that moving or
    converting the file does not change it.
    """
    key = UTTERANCE.fullmatch(path.replace(os.sep, "/"))["key"]
    return key, *annotation_row(path, file)[1:]


def speakers_of(lists):
    """Set of the speakers in trial lists of VoxCeleb1."""
    speakers = set()
    for list_path in [lists] if isinstance(lists, str) else lists:
        for file in read_trials(list_path).files:
            found = [
                part for part in file.split("/") if SPEAKER.fullmatch(part)
            ]
            if not found:
                raise ValueError(
                    f"{list_path} has {file}, which is not in the folder of a "
                    "speaker (idNNNNN). Set held_out to lists of VoxCeleb1."
                )
            speakers.add(found[-1])
    return speakers


def speaker_numbers(ids):
    """int64 number of the speaker of each utterance, for supervised training.

    Example
    -------
    >>> speaker_numbers(["dev/id00017/a/00001", "dev/id00012/b/00001"])
    array([1, 0])
    """
    found = [SPEAKER_FOLDER.search(name) for name in ids]
    if None in found:
        raise ValueError(
            f"The ID {ids[found.index(None)]!r} is not in the folder of a "
            "speaker (idNNNNN). Give speakers as a CSV with ID and spk_id."
        )
    names = np.array([match[1] for match in found])
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def prepare_trials(data_folder, lists_folder, names="OEH", base_url=BASE_URL):
    """Writes trial lists with paths relative to the folder of VoxCeleb1.

    Official lists that are not in ``lists_folder`` are downloaded.

    Arguments
    ---------
    data_folder : str
        VoxCeleb1. O needs its test split, E and H need both splits.
    lists_folder : str
        Folder of the official lists, and of the output ``vox1_O.txt``, ...
    names : str
        Letters of the cleaned lists: O, E and H.
    base_url : str
        URL of the folder of official lists.

    Returns
    -------
    list of str
        The written lists, for ``verify.py`` with data_root: data_folder.

    Raises
    ------
    FileNotFoundError
        If audio of a list is missing.
    OSError
        If a list cannot be downloaded.
    ValueError
        If a list is unknown or damaged.
    """
    unknown = set(names) - set(LISTS)
    if unknown:
        raise ValueError(
            f"VoxCeleb1 has no list {', '.join(sorted(unknown))}; choose from "
            f"{', '.join(LISTS)}."
        )
    places = find_speakers(data_folder)
    written = []
    for name in names:
        official, count = LISTS[name]
        source = os.path.join(lists_folder, official)
        if not os.path.isfile(source):
            download_list(f"{base_url}/{official}", source)
        trials = read_trials(source, need_labels=True)
        if len(trials.targets) != count:
            logger.warning(
                f"{source} has {len(trials.targets)} trials, but the official "
                f"list has {count}: error rates are not comparable."
            )
        files = _locate(trials.files, places, data_folder, source)
        path = os.path.join(lists_folder, f"vox1_{name}.txt")
        with write_whole(path) as file:
            for label, *pair in zip(trials.targets, trials.enrol, trials.test):
                enrol, test = (files[index] for index in pair)
                file.write(f"{label} {enrol} {test}\n")
        logger.info(f"{path}: {len(trials.targets)} trials")
        written.append(path)
    return written


def find_speakers(data_folder):
    """Parent folders of the folders of each speaker, relative to VoxCeleb1."""
    places = {}
    for parent, folders, _ in os.walk(data_folder, followlinks=True):
        folders.sort()
        relative = os.path.relpath(parent, data_folder)
        for name in filter(SPEAKER.fullmatch, folders):
            places.setdefault(name, []).append(os.path.normpath(relative))
        is_deep = relative.count(os.sep) + 1 >= DEPTH
        folders[:] = [
            name
            for name in folders
            if not is_deep and name[0] != "." and not SPEAKER.fullmatch(name)
        ]
    if not places:
        raise FileNotFoundError(
            f"{data_folder} has no folders of speakers, e.g. wav/id10270. "
            "Give the folder of VoxCeleb1."
        )
    return places


def download_list(url, path):
    """Downloads a trial list; if that fails, no file is written."""
    logger.info(f"Downloading {url}")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            text = answer.read().decode()
        if not re.match(r"[01] \S+ \S+\s", text):
            raise OSError("the answer is not a trial list")
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        raise OSError(
            f"Cannot download {url}: {error}. Download it on another machine "
            f"and copy it to {os.path.abspath(path)}."
        ) from error
    with write_whole(path) as file:
        file.write(text)


def _format_rank(path):
    """Returns the position of a format in ``audio.EXTENSIONS``."""
    return audio.EXTENSIONS.index(os.path.splitext(path)[1].lower())


def _check_speakers(speakers, held_out, allow_test_speakers):
    """Raises if test speakers are in the training set, unless allowed."""
    seen = sorted(speakers & held_out)
    if seen and not allow_test_speakers:
        raise ValueError(
            f"The training folder has {len(seen)} test speakers, e.g. "
            f"{seen[0]}. Remove their folders (the test split of VoxCeleb1 is "
            "excluded if it is in a folder named test), or set "
            "allow_test_speakers: True and do not report error rates on them."
        )
    if seen:
        logger.warning(f"The training set has {len(seen)} test speakers.")
    elif speakers & VOXCELEB1:
        logger.warning(
            "The training set has speakers of VoxCeleb1, which are also in "
            "the lists E and H: only list O has unseen speakers."
        )


def _check_torchcodec(paths):
    """Raises if files need torchcodec and it is not installed."""
    count = sum(map(audio.needs_torchcodec, paths))
    if not count:
        return
    try:
        audio.import_torchcodec()
    except OSError as error:
        raise OSError(
            f"{count} of {len(paths)} utterances are m4a: {error}. Or convert "
            "them to wav, which is also faster to read: see README.md."
        ) from error


def _locate(files, places, data_folder, list_path):
    """Finds files SPEAKER/VIDEO/... in the data folder; returns their paths."""
    located, missing = [], []
    for file in files:
        tried = [
            os.path.normpath(os.path.join(place, file))
            for place in places.get(file.partition("/")[0], [])
        ]
        here = (p for p in tried if os.path.isfile(f"{data_folder}/{p}"))
        located.append(next(here, None))
        if located[-1] is None:
            missing.append(file)
    if missing:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} audio files of {list_path} are "
            f"missing in {data_folder}: {few}. O needs the test split of "
            "VoxCeleb1, E and H need both splits; --lists O makes only O."
        )
    return located


def _parse_arguments():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    train = jobs.add_parser("train", help="write the training annotation")
    train.add_argument("data_folder", help="VoxCeleb2")
    train.add_argument("save_csv")
    train.add_argument("--min_seconds", type=float, default=1.0)
    train.add_argument("--held_out", nargs="+", metavar="LIST")
    train.add_argument("--allow_test_speakers", action="store_true")
    train.add_argument("--num_workers", type=int)
    train.add_argument("--faces_folder")
    trials = jobs.add_parser("trials", help="write the trial lists")
    trials.add_argument("data_folder", help="VoxCeleb1")
    trials.add_argument("lists_folder")
    trials.add_argument("--lists", dest="names", default="OEH")
    trials.add_argument("--base_url", default=BASE_URL)
    listed = jobs.add_parser("faces", help="list the faces of trial lists")
    listed.add_argument("faces_folder")
    listed.add_argument("save_csv")
    listed.add_argument("lists", nargs="+")
    return vars(parser.parse_args())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    jobs = {
        "train": prepare_voxceleb_ssl,
        "trials": prepare_trials,
        "faces": list_faces,
    }
    arguments = _parse_arguments()
    with one_line("voxceleb_ssl_prepare.py"):
        jobs[arguments.pop("job")](**arguments)
