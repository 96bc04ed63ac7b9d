"""What does an annotation cost: time to read it, memory, memory per worker?

``python benchmarks/annotations.py --rows 1000000`` compares our columns with
SpeechBrain's dict of dicts (``load_data_csv``) on a VoxCeleb-like CSV and
prints JSON. Memory is private plus shared pages from /proc (Linux only).
Workers iterate over the whole set; what they add is compared with workers
that iterate over a few rows, so that the interpreter is not counted.

``--ranks 8 --workers 8`` measures a whole machine instead: so many training
processes, each with so many loader workers, go through an epoch of the CSV;
the proportional memory (PSS) of all of them is summed, and that of the same
processes with a few rows is subtracted.
"""

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

from speechbrain.dataio.dataset import DynamicItemDataset
from torch.utils.data import DataLoader

from speechbrain_ssl.dataio.annotations import (
    EpochSampler,
    UtteranceDataset,
    read_annotation,
    write_annotation,
)

DATASETS = {
    "speechbrain_ssl": lambda path: UtteranceDataset(
        read_annotation(path, "/audio")
    ),
    "speechbrain": lambda path: DynamicItemDataset.from_csv(
        path, {"data_root": "/audio"}
    ),
}
FEW = 1000
WORKERS = 2
BATCH = 64


def main():
    """Measures each way to hold the rows in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--speechbrain_rows", type=int, default=100_000)
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--workers", type=int, default=WORKERS)
    arguments = parser.parse_args()
    if arguments.ranks:
        print(json.dumps(measure_machine(arguments), indent=2))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, rows, start_method in [
            ("speechbrain_ssl", arguments.rows, "fork"),
            ("speechbrain_ssl", arguments.rows, "spawn"),
            ("speechbrain", arguments.speechbrain_rows, "fork"),
            ("speechbrain", arguments.speechbrain_rows, "spawn"),
        ]:
            few = measure_apart(folder, name, FEW, start_method)
            result = measure_apart(folder, name, rows, start_method)
            added = result.pop("worker_bytes") - few["worker_bytes"]
            result["bytes_per_row_and_worker"] = round(added / rows, 1)
            results.append(result)
    print(json.dumps({"workers": WORKERS, "results": results}, indent=2))


def measure_machine(arguments):
    """Memory of all ranks and workers of a machine, and times to start."""
    ranks, workers = arguments.ranks, arguments.workers
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "train.csv")
        write_annotation(path, map(voxceleb_like, range(arguments.rows)))
        few = os.path.join(folder, "few.csv")
        # some batches for each worker: its interpreter is then as warm
        rows = 4 * BATCH * ranks * max(workers, 1)
        write_annotation(few, map(voxceleb_like, range(rows)))
        base, _, _ = run_ranks(few, ranks, workers)
        total, cold, warm = run_ranks(path, ranks, workers)
    return {
        "rows": arguments.rows,
        "ranks": ranks,
        "workers_of_each": workers,
        "seconds_cold": round(max(cold), 2),
        "seconds_warm": round(max(warm), 2),
        "megabytes": round((total - base) / 1e6, 1),
        "bytes_per_row": round((total - base) / (arguments.rows - rows), 1),
    }


def run_ranks(csv_path, ranks, workers):
    """PSS of all processes after an epoch, and seconds that each rank read:
    without a file of columns, and with it.
    """
    context = multiprocessing.get_context("fork")
    seconds, pids = context.Queue(), context.Queue()
    done = context.Barrier(ranks + 1)
    everyone = [
        context.Process(
            target=one_rank,
            args=(csv_path, rank, ranks, workers, seconds, pids, done),
        )
        for rank in range(ranks)
    ]
    for process in everyone:
        process.start()
    found = [pids.get() for _ in everyone]
    total = sum(memory(pid, ("Pss",)) for group in found for pid in group)
    times = [seconds.get() for _ in everyone]
    done.wait()
    for process in everyone:
        process.join()
    return total, *zip(*times)


def one_rank(csv_path, rank, ranks, workers, seconds, pids, done):
    """A training process: reads the CSV, goes through an epoch, waits."""
    warnings.filterwarnings("ignore", "This DataLoader will create")
    times = []
    for _ in range(2):
        began = time.perf_counter()
        dataset = UtteranceDataset(read_annotation(csv_path, "/audio"))
        dataset.utterances.hash()
        times.append(time.perf_counter() - began)
    seconds.put(times)
    dataset.set_output_keys(["id", "duration", "wav", "start", "stop"])
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        sampler=EpochSampler(
            len(dataset), rank=rank, world_size=ranks, batch_size=BATCH
        ),
        num_workers=workers,
        collate_fn=len,
        multiprocessing_context="fork" if workers else None,
        persistent_workers=workers > 0,
    )
    batches = iter(loader)
    for _ in batches:
        pass
    gc.collect()
    group = [worker.pid for worker in getattr(batches, "_workers", [])]
    pids.put([os.getpid(), *group])
    done.wait()


def measure_apart(folder, name, rows, start_method):
    """``measure`` in a fresh interpreter, whose memory holds nothing else."""
    csv_path = os.path.join(folder, f"{rows}.csv")
    if not os.path.exists(csv_path):
        write_annotation(csv_path, map(voxceleb_like, range(rows)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(
            measure, csv_path, name, rows, start_method
        ).result()


def voxceleb_like(number):
    """A row with strings as long as VoxCeleb's."""
    speaker, name = f"id{number % 6000:05d}", f"{number:08d}"
    return (
        f"{speaker}-21Uxsk56VDQ-{name}",
        7.96,
        f"$data_root/wav/{speaker}/21Uxsk56VDQ/{name}.wav",
        0,
        127360,
    )


def measure(csv_path, name, rows, start_method):
    """Reads, iterates in workers, and returns times and bytes."""
    before = memory(os.getpid(), ("Pss",))
    began = time.perf_counter()
    dataset = DATASETS[name](csv_path)
    seconds = time.perf_counter() - began
    gc.collect()
    resident = memory(os.getpid(), ("Pss",)) - before
    dataset.set_output_keys(["id", "duration", "wav", "start", "stop"])
    loader = DataLoader(
        dataset,
        batch_size=500,
        num_workers=WORKERS,
        collate_fn=len,
        multiprocessing_context=start_method,
        persistent_workers=True,  # alive after the last batch, to be measured
    )
    batches = iter(loader)
    seen = sum(batches)
    workers = [
        memory(worker.pid, ("Private_Clean", "Private_Dirty"))
        for worker in batches._workers
    ]
    return {
        "dataset": name,
        "start_method": start_method,
        "rows": seen,
        "read_seconds": round(seconds, 2),
        "bytes_per_row": round(resident / rows, 1),
        "worker_bytes": sum(workers) / len(workers),
    }


def memory(pid, fields):
    """Bytes of a process by the kernel's account."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = [line.split() for line in file]
    kilobytes = {line[0].rstrip(":"): line[1] for line in lines}
    return 1024 * sum(int(kilobytes[field]) for field in fields)


if __name__ == "__main__":
    main()
