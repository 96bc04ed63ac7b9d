"""What is built and installed is whole, and versions fit one another."""

import email
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# the oldest, that of the figures, and the newest
PYTHONS = ("3.10", "3.11", "3.14")
IMPORT_ALL = """\
import importlib, pathlib, pkgutil, sys
import speechbrain_ssl
folder = pathlib.Path(speechbrain_ssl.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
names = [m.name for m in pkgutil.walk_packages([folder], "speechbrain_ssl.")]
for name in names:
    importlib.import_module(name)
print(len(names), (folder / "py.typed").is_file())
"""


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def tracked_files():
    return set(run("git", "ls-files", cwd=ROOT).splitlines())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of this checkout, and the wheel that is built from it."""
    pytest.importorskip("build")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout of the repository")
    # setuptools leaves folders beside the sources that it builds
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in tracked_files():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", source)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


def test_requirements_of_the_recipes_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    known = {"speechbrain_ssl>=0.1", *(line for e in extras for line in e)}
    paths = sorted(ROOT.glob("recipes/*/*/extra_requirements.txt"))
    assert len(paths) == 3
    for path in paths:
        lines = path.read_text().splitlines()
        lines = {line for line in lines if not line.startswith("#")}
        assert "speechbrain_ssl>=0.1" in lines <= known, path


@pytest.mark.slow
def test_requirements_of_the_recipes_replace_no_installed_package():
    """Also speechbrain_ssl, installed from a clone or not, stays."""
    # an import of pip would take setuptools' distutils from this process, which
    # torch.compile needs
    if not list(importlib.metadata.distributions(name="pip")):
        pytest.skip("pip is not installed")
    for path in sorted(ROOT.glob("recipes/*/*/extra_requirements.txt")):
        install = ("install", "--dry-run", "--no-index", "--no-deps", "-r")
        out = run(sys.executable, "-m", "pip", *install, path)
        assert "already satisfied: speechbrain_ssl" in out
        assert "Would install" not in out


@pytest.mark.slow
def test_sdist_has_every_file_of_the_repository(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    hidden = {name for name in tracked_files() if name.startswith(".")}
    assert tracked_files() - hidden - names == set()


@pytest.mark.slow
def test_wheel_describes_itself_and_ships_types_and_templates(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
        (path,) = [name for name in names if name.endswith("/METADATA")]
        found = email.message_from_bytes(archive.read(path))
    assert "speechbrain_ssl/py.typed" in names
    data = {p.name for p in (ROOT / "speechbrain_ssl/report").glob("*.html")}
    assert {f"speechbrain_ssl/report/{name}" for name in data} <= set(names)
    encoders = {p.name for p in (ROOT / "hparams").glob("*.yaml")}
    assert {f"speechbrain_ssl/_hparams/{name}" for name in encoders} <= set(
        names
    )
    outside = ("tests", "recipes", "hparams")
    assert not [name for name in names if name.startswith(outside)]
    assert found["Author"] == "speechbrain_ssl developers"
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Keywords"] and found["Classifier"]
    assert "Home-page" not in found and "Project-URL" not in found


@pytest.mark.slow
def test_installed_wheel_imports_every_module_outside_the_clone(
    built, tmp_path
):
    """Its dependencies are those of this environment, not a second copy."""
    pytest.importorskip("uv")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    # folders named here are searched, but their own .pth files, which lead to
    # the clone, are not read
    found = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(found))
    install = ("-m", "uv", "pip", "install", "--python", python, "--no-deps")
    run(sys.executable, *install, built[1])
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    out = run(python, "-c", IMPORT_ALL, cwd=tmp_path, env=env)
    modules = len(list((ROOT / "speechbrain_ssl").rglob("*.py"))) - 1
    assert out.split()[-2:] == [str(modules), "True"]


@pytest.mark.slow
@pytest.mark.parametrize("constraints", [False, True])
@pytest.mark.parametrize("python", PYTHONS)
def test_every_extra_can_be_installed(python, constraints):
    """Resolved as an installation would, from metadata alone."""
    pytest.importorskip("uv")
    limits = ["-c", "constraints.txt"] if constraints else []
    out = run(
        *(sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml"),
        *("--extra", "dev", "--python-version", python, *limits),
        *("--no-python-downloads", "--only-binary", ":all:", "--no-header"),
        *("--no-annotate", "--quiet"),
        cwd=ROOT,
    )
    found = dict(re.findall(r"^([\w-]+)==(\d+\.\d+)", out, re.MULTILINE))
    # the next release of torchaudio is not known to come
    assert found["torch"] == found["torchaudio"] == "2.11"
    # by torchcodec's own table of releases
    assert found["torchcodec"] == "0.11"
    assert found["speechbrain"] == "1.1"
    assert int(found["transformers"].split(".")[0]) >= 5
