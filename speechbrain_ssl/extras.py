"""Packages that are not always needed, from the extras of ``pip install``."""

import importlib
from typing import Any

# package: (module, the extra that brings it, what needs it)
EXTRAS = {
    "matplotlib": ("matplotlib", "report", "plots of the report"),
    "transformers": ("transformers", "wavlm", "WavLM and its relatives"),
    "onnxruntime": ("onnxruntime", "onnx", "ONNX files"),
    "onnxscript": ("onnxscript", "onnx", "ONNX export"),
    "igraph": ("igraph", "graph", "Graph with method leiden"),
    "gradio": ("gradio", "page", "demo-page"),
    "torchcodec": ("torchcodec", "m4a", "m4a files"),
    "torchvision": ("torchvision", "av", "faces"),
    "silero-vad": ("silero_vad", "vad", "segment --vad silero"),
    "datasets": ("datasets", "hf", "pack --hf"),
    "s3fs": ("s3fs", "remote", "audio in S3"),
    "aiohttp": ("aiohttp", "remote", "audio on web servers"),
    "espeakng-loader": ("espeakng_loader", "demo", "voices of make demo"),
}


def extra(package: str) -> Any:
    """Imports a package of ``EXTRAS``; the error says how to install it."""
    module, name, use = EXTRAS[package]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{package} cannot be imported ({error}); needed for {use}: "
            f"pip install 'speechbrain_ssl[{name}]'"
        ) from error
