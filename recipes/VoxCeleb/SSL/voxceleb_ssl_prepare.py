"""Makes the annotation of VoxCeleb2 for training and the trials of VoxCeleb1.

Training calls ``prepare_voxceleb_ssl`` by itself. The trial lists are made
once by hand::

    > python voxceleb_ssl_prepare.py trials /corpora/voxceleb1 trials

Both trees are taken as they are unpacked: ``dev/aac/id00012/VIDEO/00001.m4a``
(or ``dev/wav/...`` after a conversion) and ``wav/id10270/VIDEO/00001.wav``,
with or without folders ``dev`` and ``test`` above. A VoxCeleb path holds the
speaker; it stands in ID and wav, and no self-supervised training reads it. It
is read here to keep the speakers of the test out, and by ``speaker_numbers``,
which train_supervised.yaml names.
"""

import argparse
import functools
import http.client
import logging
import os
import re
import urllib.request

import numpy as np
from audio_folder_prepare import annotation_row, prepare_audio_folder
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.evaluation.trials import read_trials
from speechbrain_ssl.files import write_whole

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

BASE_URL = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta"
# the cleaned lists: their names there, and how many trials they have
LISTS = {
    "O": ("veri_test2.txt", 37_611),
    "E": ("list_test_all2.txt", 579_818),
    "H": ("list_test_hard2.txt", 550_894),
}
DEPTH = 3  # of folders above those of the speakers

SPEAKER = re.compile(r"id\d{5}")
SPEAKER_FOLDER = re.compile(r"(?:^|/)(id\d{5})/")
UTTERANCE = re.compile(
    r"(?P<above>(?:.*/)?)(?P<key>(?P<speaker>id\d{5})/[^/]+/\d+)\.[^./]+"
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
):
    """Lists the training utterances of a VoxCeleb tree, without speakers.

    The columns are ID, duration, wav, start, stop; the ID is the path without
    its extension. What is not used (the test split, copies of an utterance in
    a second format, broken files ...) stands with the reason in skipped.csv
    next to the annotation.

    Arguments
    ---------
    data_folder : str
        VoxCeleb2, or any folder above those of the speakers.
    save_csv : str
        The annotation to write.
    min_seconds : float
        Shorter files are skipped.
    held_out : list of str
        Trial lists whose speakers must not be trained on; by default they
        are the 40 speakers of VoxCeleb1-O, for which no list is needed.
    allow_test_speakers : bool
        Trains on them all the same; error rates on them mean nothing then.
    num_workers : int
        Threads; by default four per processor.

    Returns
    -------
    dict
        Number of files by outcome, as from ``prepare_audio_folder``.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If it has no usable audio in VoxCeleb's tree, or speakers of the test.
    OSError
        If it has m4a files and torchcodec is not installed.

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
    )


def find_utterances(data_folder, held_out=(), allow_test_speakers=False):
    """Finds the files to train on, each utterance once.

    Arguments
    ---------
    data_folder : str
        Where to look.
    held_out : set of str
        Speakers that must not be there.
    allow_test_speakers : bool
        Whether they may be there after all.

    Returns
    -------
    paths : list of str
        Sorted.
    left_out : dict
        Reasons by path, for the other files.

    Raises
    ------
    ValueError
        If there is no utterance, or one of a speaker that is held out.
    OSError
        If torchcodec is needed and not installed.
    """
    files, problems = audio.find(data_folder)
    chosen, speakers = {}, set()
    # of several formats the one that is read fastest
    files.sort(key=lambda path: (_format_rank(path), path))
    for path in files:
        name = os.path.relpath(path, data_folder)
        found = UTTERANCE.fullmatch(name)
        if not found:
            problems[path] = "not VoxCeleb: expected idNNNNN/VIDEO/NNNNN.*"
        elif TEST_SPLIT.search(found["above"]):
            problems[path] = "test split: not trained on"
        elif found["key"] in chosen:
            problems[path] = f"duplicate: {chosen[found['key']]} is used"
        else:
            chosen[found["key"]] = name
            speakers.add(found["speaker"])
    if not chosen:
        raise ValueError(
            f"{data_folder} has {len(files)} audio files, but none to train "
            "on in VoxCeleb's tree, e.g. dev/aac/id00012/VIDEO/00001.m4a. "
            "Set data_folder to the folder that holds dev or the speakers."
        )
    _check_speakers(speakers, held_out, allow_test_speakers)
    paths = [
        os.path.join(data_folder, name) for name in sorted(chosen.values())
    ]
    _check_torchcodec(paths)
    return paths, problems


def utterance_row(path, file):
    """One row of the annotation.

    Arguments
    ---------
    path : str
        Relative to the data folder.
    file : audio_folder_prepare.File
        What is known of it.

    Returns
    -------
    tuple
        ID, duration, wav, start, stop. The ID outlives a conversion.
    """
    return os.path.splitext(path)[0], *annotation_row(path, file)[1:]


def speakers_of(lists):
    """Speakers of trial lists, by the folders of their files.

    Arguments
    ---------
    lists : list of str
        Trial lists of VoxCeleb1; a single path will do.

    Returns
    -------
    set of str
        Such as id10270.

    Raises
    ------
    ValueError
        If a list names a file that is in no speaker's folder.
    """
    speakers = set()
    for list_path in [lists] if isinstance(lists, str) else lists:
        for file in read_trials(list_path).files:
            found = [
                part for part in file.split("/") if SPEAKER.fullmatch(part)
            ]
            if not found:
                raise ValueError(
                    f"{list_path} has {file}, which is in no folder of a "
                    "speaker (idNNNNN). held_out takes lists of VoxCeleb1."
                )
            speakers.add(found[-1])
    return speakers


def speaker_numbers(ids):
    """Speakers of utterances, for supervised training alone.

    Arguments
    ---------
    ids : list of str
        IDs that ``prepare_voxceleb_ssl`` gave [n].

    Returns
    -------
    np.ndarray
        int64 number of each one's speaker [n].

    Raises
    ------
    ValueError
        If an ID is in no speaker's folder.

    Example
    -------
    >>> speaker_numbers(["dev/id00017/a/00001", "dev/id00012/b/00001"])
    array([1, 0])
    """
    found = [SPEAKER_FOLDER.search(name) for name in ids]
    if None in found:
        raise ValueError(
            f"The ID {ids[found.index(None)]!r} is in no folder of a speaker "
            "(idNNNNN). Give speakers as a CSV with ID and spk_id."
        )
    names = np.array([match[1] for match in found])
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def prepare_trials(data_folder, lists_folder, names="OEH", base_url=BASE_URL):
    """Makes trial lists whose paths start from the VoxCeleb1 folder.

    The official lists are downloaded unless they are there.

    Arguments
    ---------
    data_folder : str
        VoxCeleb1; O needs its test split, E and H need both.
    lists_folder : str
        Where official lists are kept and ``vox1_O.txt`` ... are written.
    names : str
        Which lists: letters of O, E and H, all cleaned.
    base_url : str
        Where the official lists are.

    Returns
    -------
    list of str
        The lists written, for ``verify.py`` with data_root: data_folder.

    Raises
    ------
    FileNotFoundError
        If audio of a list is missing.
    OSError
        If a list cannot be downloaded.
    ValueError
        If there is no such list, or it is damaged.
    """
    unknown = set(names) - set(LISTS)
    if unknown:
        raise ValueError(
            f"There is no list {', '.join(sorted(unknown))} of VoxCeleb1; "
            f"choose from {', '.join(LISTS)}."
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
                f"{source} has {len(trials.targets)} trials, the official "
                f"list has {count}: figures will not compare."
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
    """Finds the folders of the speakers, whatever is above them.

    Arguments
    ---------
    data_folder : str
        VoxCeleb1.

    Returns
    -------
    dict
        Folders that hold a speaker's, relative to data_folder, by speaker.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
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
            f"{data_folder} holds no folders of speakers such as "
            "wav/id10270. Give the folder of VoxCeleb1."
        )
    return places


def download_list(url, path):
    """Downloads a trial list, whole or not at all.

    Arguments
    ---------
    url : str
        Where it is.
    path : str
        Where to put it.

    Raises
    ------
    OSError
        If it cannot be had; the message says where to put it by hand.
    """
    logger.info(f"Downloading {url}")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            text = answer.read().decode()
        if not re.match(r"[01] \S+ \S+\s", text):
            raise OSError("what came is no trial list")
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        raise OSError(
            f"Cannot download {url}: {error}. Get it where there is a "
            f"network, and put it at {os.path.abspath(path)}."
        ) from error
    with write_whole(path) as file:
        file.write(text)


def _format_rank(path):
    """Low for formats to prefer, in the order of ``audio.EXTENSIONS``."""
    return audio.EXTENSIONS.index(os.path.splitext(path)[1].lower())


def _check_speakers(speakers, held_out, allow_test_speakers):
    """Keeps a test of unseen speakers what it says."""
    seen = sorted(speakers & held_out)
    if seen and not allow_test_speakers:
        raise ValueError(
            f"The training folder has {len(seen)} speakers of the test, e.g. "
            f"{seen[0]}. Take their folders out (VoxCeleb1's test split is "
            "left out by itself when a folder named test holds it), or set "
            "allow_test_speakers: True and do not report error rates on them."
        )
    if seen:
        logger.warning(f"{len(seen)} speakers of the test are trained on.")
    elif speakers & VOXCELEB1:
        logger.warning(
            "Speakers of VoxCeleb1 are trained on. The lists E and H are made "
            "of them: only O tests on unseen speakers."
        )


def _check_torchcodec(paths):
    """One clear error instead of a million unreadable files."""
    count = sum(map(audio.needs_torchcodec, paths))
    if not count:
        return
    try:
        audio.import_torchcodec()
    except OSError as error:
        raise OSError(
            f"{count} of {len(paths)} utterances are m4a: {error}. Or convert "
            "them to wav, which also trains faster: see README.md."
        ) from error


def _locate(files, places, data_folder, list_path):
    """Paths relative to the data folder of files given from the speaker on."""
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
            "VoxCeleb1, E and H need both; --lists O makes that one alone."
        )
    return located


def _parse_arguments():
    """Of a run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    train = jobs.add_parser("train", help="list the training utterances")
    train.add_argument("data_folder", help="VoxCeleb2")
    train.add_argument("save_csv")
    train.add_argument("--min_seconds", type=float, default=1.0)
    train.add_argument("--held_out", nargs="+", metavar="LIST")
    train.add_argument("--allow_test_speakers", action="store_true")
    train.add_argument("--num_workers", type=int)
    trials = jobs.add_parser("trials", help="make the trial lists")
    trials.add_argument("data_folder", help="VoxCeleb1")
    trials.add_argument("lists_folder")
    trials.add_argument("--lists", dest="names", default="OEH")
    trials.add_argument("--base_url", default=BASE_URL)
    return vars(parser.parse_args())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = _parse_arguments()
    if arguments.pop("job") == "train":
        prepare_voxceleb_ssl(**arguments)
    else:
        prepare_trials(**arguments)
