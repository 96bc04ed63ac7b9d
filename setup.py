"""Installs speechbrain_ssl: self-supervised speaker verification for SpeechBrain."""

import pathlib

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
version = {}
exec((here / "speechbrain_ssl" / "__init__.py").read_text(), version)

extras = {
    # the demo's default corpus is spoken by espeak-ng, which comes as a wheel
    "demo": ["espeakng-loader>=0.2"],
    "report": ["matplotlib>=3.8", "tensorboard>=2.15"],
    "wavlm": ["transformers>=5.0"],
    "m4a": ["torchcodec"],
    # python -m speechbrain_ssl.onnx
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.2"],
    # Leiden's communities for clusters of unknown number
    "graph": ["igraph>=0.10"],
}
extras["dev"] = [
    *extras["demo"],
    *extras["report"],
    *extras["wavlm"],
    *extras["onnx"],
    *extras["m4a"],
    *extras["graph"],
    "pytest>=8",
    "ruff==0.12.4",
    "yamllint==1.35.1",
]

setup(
    name="speechbrain_ssl",
    version=version["__version__"],
    description="Self-supervised speaker verification for SpeechBrain",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["speechbrain_ssl", "speechbrain_ssl.*"]),
    python_requires=">=3.10",
    install_requires=[
        "speechbrain>=1.1.2",
        "torch>=2.6",
        "torchaudio>=2.6",
        "hyperpyyaml>=1.2.2",
        "numpy",
        "scikit-learn>=1.4",
        "faiss-cpu>=1.8",
        "soundfile>=0.12",
        "sentencepiece",
        "tqdm",
    ],
    extras_require=extras,
    entry_points={
        "console_scripts": [
            f"speechbrain-ssl-{name} = speechbrain_ssl.{name}:main"
            for name in ("embed", "verify", "onnx", "push")
        ]
    },
)
