"""What would go to the hub, up to the upload."""

import shutil

import pytest

from speechbrain_ssl import push as module
from speechbrain_ssl.card import suggest_threshold
from speechbrain_ssl.push import main, push
from tests.models import export_model


class Hub:
    """Takes down what it is asked to do."""

    calls = []

    def create_repo(self, repository, **options):
        self.calls.append(("create", repository, options))

    def create_commit(self, repository, operations, commit_message):
        files = {op.path_in_repo: op.path_or_fileobj for op in operations}
        self.calls.append(("commit", repository, files))


@pytest.fixture
def hub(monkeypatch):
    """Stands in for huggingface.co."""
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(module, "HfApi", Hub)
    return Hub


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported folder, with a file that is none of its own."""
    folder = tmp_path_factory.mktemp("push") / "model"
    export_model(folder)
    (folder / "notes.txt").write_text("private")
    return str(folder)


def test_a_dry_run_says_what_would_go_and_sends_nothing(hub, model, capsys):
    main([model, "someone/encoder", "--dry_run"])
    out = capsys.readouterr().out
    assert "Would upload to someone/encoder: hyperparams.yaml" in out
    assert "notes.txt" not in out and hub.calls == []


def test_one_commit_has_what_speechbrain_needs(hub, model):
    names = push(model, "someone/encoder", private=True)
    (made, repository, options), (commit, where, files) = hub.calls
    assert (made, commit) == ("create", "commit")
    assert repository == where == "someone/encoder"
    assert options == {"private": True, "exist_ok": True}
    assert list(files) == names
    assert set(names) == {
        "hyperparams.yaml",
        "embedding_model.ckpt",
        "README.md",
    }
    card = files["README.md"].decode()
    assert 'source="someone/encoder"' in card and 'source="model"' not in card


def test_the_threshold_goes_along(hub, model):
    suggest_threshold(model, {"threshold": 0.3, "EER": 5.0}, "list.txt")
    assert "threshold.json" in push(model, "someone/encoder", dry_run=True)


@pytest.mark.parametrize("name", ["encoder", "a/b/c", "some one/x", "a/"])
def test_a_name_that_is_none_is_refused_before_anything(hub, model, name):
    with pytest.raises(SystemExit, match="push: "):
        main([model, name])
    assert hub.calls == []


def test_a_folder_that_is_no_model_is_not_uploaded(hub, tmp_path):
    with pytest.raises(SystemExit, match="not an exported model"):
        main([str(tmp_path), "someone/encoder"])
    assert hub.calls == []


def test_a_license_is_asked_for(hub, model, capsys):
    main([model, "someone/encoder", "--dry_run"])
    assert "states no license" in capsys.readouterr().out
    main([model, "someone/encoder", "--dry_run", "--license=mit"])
    assert "license" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "threshold.json"])
def test_links_out_of_the_folder_are_not_followed(hub, model, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (tmp_path / "secret").write_text("private key")
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to("../secret")
    with pytest.raises(SystemExit, match="link to .*secret, outside"):
        main([str(copy), "someone/encoder"])
    assert hub.calls == []


def test_a_foreign_folder_is_checked_before_anything(hub, model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    with open(copy / "hyperparams.yaml", "a") as file:
        file.write(f"x: !apply:os.mkdir [{tmp_path}/pwned]\n")
    with pytest.raises(SystemExit, match="!apply:os.mkdir is not allowed"):
        main([str(copy), "someone/encoder", "--dry_run"])
    assert not (tmp_path / "pwned").exists()


def test_a_threshold_that_is_no_cosine_is_not_uploaded(hub, tmp_path):
    folder = export_model(tmp_path / "model")
    (tmp_path / "model" / "threshold.json").write_text('{"threshold": NaN}')
    with pytest.raises(ValueError, match="threshold.json should hold"):
        push(folder, "someone/encoder")
    assert hub.calls == []


def test_a_card_that_is_not_utf_8_is_named(hub, tmp_path):
    folder = export_model(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_bytes(b"\xe4\xff")
    with pytest.raises(
        ValueError, match="README.md is no text: expected UTF-8"
    ):
        push(folder, "someone/encoder")
