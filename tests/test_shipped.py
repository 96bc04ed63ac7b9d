"""Files beside the package, by name."""

import yaml

from speechbrain_ssl import shipped


def test_a_name_is_a_file_of_the_folder_of_encoders():
    files = shipped.encoder_files()
    assert {path.parent for path in files.values()} == {
        shipped.folder("hparams")
    }
    assert shipped.encoder_file("campplus") == str(files["campplus"])
    text = files["campplus"].read_text()
    assert any(
        isinstance(event, yaml.ScalarEvent) and event.value == "embedding_model"
        for event in yaml.parse(text)
    )


def test_a_path_wins_over_a_name_and_unknown_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.encoder_file("no_such_encoder") == "no_such_encoder"
    (tmp_path / "campplus").write_text("mine")
    assert shipped.encoder_file("campplus") == "campplus"


def test_an_installed_package_has_copies(tmp_path, monkeypatch):
    package = tmp_path / "site" / "speechbrain_ssl"
    monkeypatch.setattr(
        shipped.speechbrain_ssl, "__file__", str(package / "__init__.py")
    )
    assert shipped.folder("hparams") == package / "_hparams"
    (package.parent / "hparams").mkdir(parents=True)
    assert shipped.folder("hparams") == package.parent / "hparams"
