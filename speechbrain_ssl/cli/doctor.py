"""Describes the environment: versions, devices, and what is missing.

    > speechbrain-ssl doctor

Its output belongs into a bug report. The exit status is 1 if a package that is
always needed is missing or cannot be imported.
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys

from speechbrain_ssl.extras import EXTRAS

REQUIRED = {
    "torch": "torch",
    "torchaudio": "torchaudio",
    "speechbrain": "speechbrain",
    "hyperpyyaml": "hyperpyyaml",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "faiss-cpu": "faiss",
    "soundfile": "soundfile",
    "fsspec": "fsspec",
    "sentencepiece": "sentencepiece",
    "tqdm": "tqdm",
    "jinja2": "jinja2",
}


def describe() -> tuple[list[str], bool]:
    """Lines about the environment, and whether all needed packages import."""
    import speechbrain_ssl

    lines = [
        f"speechbrain_ssl {speechbrain_ssl.__version__}",
        f"Python {platform.python_version()} on {platform.platform()}",
    ]
    healthy = True
    for package, module in REQUIRED.items():
        version, problem = _import(package, module)
        healthy &= problem is None
        lines.append(f"{package} {version}" if problem is None else problem)
    for package, (module, extra, use) in EXTRAS.items():
        version, problem = _import(package, module)
        lines.append(
            f"{package} {version}"
            if problem is None
            else f"{problem}; needed for {use}: "
            f"pip install 'speechbrain_ssl[{extra}]'"
        )
    lines += _devices()
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    lines.append(f"{free:.0f} GiB free in {os.getcwd()}")
    return lines, healthy


def _import(package, module):
    """Version of a package, and a problem or None."""
    try:
        importlib.import_module(module)
        return importlib.metadata.version(package), None
    except importlib.metadata.PackageNotFoundError:
        return "(version unknown)", None
    except ImportError as error:
        return None, f"{package} cannot be imported ({error})"
    except Exception as error:  # a library that fails while it loads
        return None, f"{package} fails when imported ({error!r})"


def _devices():
    """Lines about processors and accelerators."""
    lines = [f"{os.cpu_count()} CPU cores"]
    try:
        import torch
    except ImportError:
        return lines
    lines.append(f"{torch.get_num_threads()} threads of torch")
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        memory = found.total_memory / 2**30
        lines.append(f"GPU {index}: {found.name}, {memory:.0f} GiB")
    if not torch.cuda.is_available():
        lines.append("no CUDA GPU: training uses the CPU")
    return lines


def main(argv: list[str] | None = None) -> None:
    """The command line of ``doctor``, which has no arguments."""
    if argv:
        print(__doc__)
        sys.exit(0 if argv[0] in ("-h", "--help") else 2)
    lines, healthy = describe()
    print("\n".join(lines))
    sys.exit(0 if healthy else 1)
