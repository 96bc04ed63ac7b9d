"""Uploads an exported model to huggingface.co.

    > hf auth login
    > python -m speechbrain_ssl.push MODEL_FOLDER user/name --license cc-by-4.0 \
        --language en [--dry_run]

The upload is what SpeechBrain needs, the model card and the threshold. The
model is loaded first, so that no broken folder gets there.
"""

import os
from collections.abc import Sequence
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from speechbrain_ssl.card import (
    CARD_NAME,
    THRESHOLD_NAME,
    UNKNOWN_LICENSE,
    publish_card,
    read_card,
    read_threshold,
)
from speechbrain_ssl.help import command_parser, one_line
from speechbrain_ssl.loading import (
    HPARAMS_NAME,
    WEIGHTS_NAME,
    add_trust,
    load_encoder,
)

NEEDED = (HPARAMS_NAME, WEIGHTS_NAME, CARD_NAME)


def push(
    model_folder: str,
    repository: str,
    private: bool = False,
    dry_run: bool = False,
    license: str | None = None,
    language: Sequence[str] | None = None,
    trust: Sequence[str] = (),
) -> list[str]:
    """Uploads an exported folder in one commit; gives the names of the files.

    The repository ``user/name`` is made if it is not there. ``dry_run`` stops
    before anything leaves this machine. ``license`` (the hub's name) and
    ``language`` (ISO 639 codes of the audio) are those of the card if they are
    None. A link to somewhere outside of the folder is an error.
    """
    if repository.count("/") != 1:
        raise ValueError(
            f"A repository is named user/name, not {repository!r}."
        )
    validate_repo_id(repository)
    contents: dict[str, str | bytes] = {}
    for name in (*NEEDED, THRESHOLD_NAME):
        path = os.path.join(model_folder, name)
        if name in NEEDED or os.path.lexists(path):
            contents[name] = path
            _check_inside(model_folder, path)
    load_encoder(model_folder, trust=trust)
    read_threshold(model_folder)
    card = publish_card(model_folder, repository, license, language)
    contents[CARD_NAME] = card.encode()
    if not dry_run:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(
            repository,
            [CommitOperationAdd(*item) for item in contents.items()],
            commit_message="Speaker encoder trained by speechbrain_ssl",
        )
    return list(contents)


def _check_inside(folder, path):
    """Refuses what is no file of the folder: it would become public."""
    root, target = os.path.realpath(folder), os.path.realpath(path)
    if os.path.commonpath([root, target]) != root:
        raise ValueError(
            f"{path} is a link to {target}, outside of the folder. Copy the "
            "file into the folder if it belongs to the model."
        )
    if os.path.lexists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a file.")


def main(argv: list[str] | None = None) -> None:
    """The command line of ``push``."""
    parser = command_parser(__doc__)
    parser.add_argument("model_folder")
    parser.add_argument("repository", metavar="user/name")
    parser.add_argument("--license", help="such as cc-by-4.0 or apache-2.0")
    parser.add_argument(
        "--language", nargs="+", help="of the audio, such as en fr"
    )
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--dry_run", action="store_true")
    add_trust(parser)
    args = parser.parse_args(argv)
    with one_line("push", HfHubHTTPError, HFValidationError):
        names = push(**vars(args))
    done = "Would upload" if args.dry_run else "Uploaded"
    print(f"{done} to {args.repository}: {', '.join(names)}")
    data: Any = read_card(args.model_folder).data
    license = args.license or data.license
    if license in (None, UNKNOWN_LICENSE):
        print("The card states no license: give one with --license.")


if __name__ == "__main__":
    main()
