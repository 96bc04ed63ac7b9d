"""An exported model to huggingface.co::

    > hf auth login
    > python -m speechbrain_ssl.push MODEL_FOLDER user/name [--dry_run]

What is uploaded is what SpeechBrain needs, the README and the threshold; the
model is loaded first, so that no broken folder gets there.
"""

import argparse
import os
import sys

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from speechbrain_ssl.inference import THRESHOLD_NAME, load_encoder

NEEDED = ("hyperparams.yaml", "embedding_model.ckpt", "README.md")


def push(model_folder, repository, private=False, dry_run=False):
    """Uploads an exported folder in one commit.

    Arguments
    ---------
    model_folder : str
        The folder.
    repository : str
        ``user/name``; it is made if it is not there.
    private : bool
        Whether a new repository is private.
    dry_run : bool
        Whether to stop before anything leaves this machine.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    FileNotFoundError
        If the folder is no exported model.
    ValueError
        If the name is none of a repository.
    """
    if repository.count("/") != 1:
        raise ValueError(
            f"A repository is named user/name, not {repository!r}."
        )
    validate_repo_id(repository)
    load_encoder(model_folder)
    names = [
        name
        for name in (*NEEDED, THRESHOLD_NAME)
        if name in NEEDED or os.path.isfile(os.path.join(model_folder, name))
    ]
    contents = {name: os.path.join(model_folder, name) for name in names}
    contents["README.md"] = _card(model_folder, repository)
    if not dry_run:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(
            repository,
            [CommitOperationAdd(*item) for item in contents.items()],
            commit_message="Speaker encoder trained by speechbrain_ssl",
        )
    return names


def _card(model_folder, repository):
    """The README, with the name that the model will be loaded by."""
    path = os.path.join(model_folder, "README.md")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    name = os.path.basename(os.path.abspath(model_folder))
    return text.replace(f'source="{name}"', f'source="{repository}"').encode()


def main(argv=None):
    """The command line of ``push``.

    Arguments
    ---------
    argv : list of str
        ``sys.argv[1:]`` by default.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model_folder")
    parser.add_argument("repository", metavar="user/name")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--dry_run", action="store_true")
    args = parser.parse_args(argv)
    try:
        names = push(**vars(args))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        sys.exit(f"push: {error}")
    done = "Would upload" if args.dry_run else "Uploaded"
    print(f"{done} to {args.repository}: {', '.join(names)}")


if __name__ == "__main__":
    main()
