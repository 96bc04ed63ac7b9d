"""How long a loss gate takes to decide on the losses of an epoch.

    > python benchmarks/gate.py --losses 1090000

Log-losses are those of two Gaussians. Beside the time stands that of sorting
them, without which no percentile is known. Seconds are of processor time (all
threads together), which a busy machine changes less, and by the clock.
"""

import argparse
import json
import time

import numpy as np
import torch

from speechbrain_ssl.pseudo_labels.gating import MixtureGate


def main(argv=None):
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", type=int, default=1_090_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    low = rng.random(args.losses) < 0.6
    drawn = rng.standard_normal(args.losses)
    losses = np.where(low, 1.2 * drawn - 3, 0.6 * drawn + 1.2)
    given, gate = torch.from_numpy(losses.astype(np.float32)), MixtureGate()
    fit = measure(lambda: gate.fit(given), args.repeats)
    sort = measure(lambda: np.sort(losses), args.repeats)
    result = {
        "settings": vars(args),
        "decision": gate.decisions[-1].reason,
        **fit,
        "floor": "np.sort of the losses",
        "floor_cpu_seconds": sort["cpu_seconds"],
        "times_floor": round(fit["cpu_seconds"] / sort["cpu_seconds"], 1),
    }
    print(json.dumps(result, indent=2))


def measure(function, repeats):
    """The best time of some calls."""
    clock, processor = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        function()
        clock.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return {
        "seconds": round(min(clock), 3),
        "cpu_seconds": round(min(processor), 3),
    }


if __name__ == "__main__":
    main()
