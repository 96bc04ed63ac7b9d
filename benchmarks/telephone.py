"""Copies a folder of audio through telephone lines, one line for each file.

    > python benchmarks/telephone.py SPEECH/train PHONE/train

The line is ``Telephone``: 50 to 350 Hz up to 3.0 to 3.8 kHz, 8 kHz, clipping
and 8-bit mu-law; cutoffs and level depend on the seed and the file's place in
the sorted list. The copies are FLAC files of the same names and sample rates.
"""

import argparse
import pathlib

import numpy as np
import soundfile
import torch

from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.augmentation import Telephone, stack_draws


def main():
    """Reads the command line and copies all files."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    paths, _ = audio.find(str(args.source))
    for number, path in enumerate(sorted(paths)):
        wav, rate = soundfile.read(path, dtype="float32")
        line = Telephone()
        line.prepare(rate, None, None)
        draw = line.draw(np.random.default_rng([args.seed, number]))
        found = line.apply(torch.from_numpy(wav)[None], stack_draws([draw]))
        to = args.target / pathlib.Path(path).relative_to(args.source)
        to.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            to.with_suffix(".flac"), found[0].clamp(-1, 1).numpy(), rate
        )


if __name__ == "__main__":
    main()
