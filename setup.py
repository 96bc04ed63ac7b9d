"""The packages; pyproject.toml describes everything else."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["speechbrain_ssl*"]),
        # the recipes, so that an installed wheel can train
        "speechbrain_ssl._recipes",
    ],
    package_dir={"speechbrain_ssl._recipes": "recipes"},
)
