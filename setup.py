"""The packages; pyproject.toml describes everything else."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["speechbrain_ssl*"]),
        # recipes and encoders, so that an installed wheel can train
        "speechbrain_ssl._recipes",
        "speechbrain_ssl._hparams",
    ],
    package_dir={
        "speechbrain_ssl._recipes": "recipes",
        "speechbrain_ssl._hparams": "hparams",
    },
)
