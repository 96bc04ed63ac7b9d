"""Views per second beside sslsv (T. Lepage), which it takes a checkout of.

    > benchmarks/against_sslsv.sh /checkouts/sslsv --audio /speech --steps 30

Both train SimCLR without a head, with the same encoder object (that of
``train_simclr.yaml``: features, normalization, ECAPA), two clean crops of the
same files, the same batch, workers, threads and precision. sslsv reads files,
cuts crops and steps by its own ``SSLDataset`` and ``Trainer``; its packages
must be installed. The two are timed in turn, ``--turns`` times, each in a
process of its own, and the ratio is that of the medians. Prints JSON.
"""

import argparse
import glob
import inspect
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/AudioFolder/SSL"
SETTLING = 4


def parse(argv):
    """The command line; further arguments are overrides of the YAML."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkout")
    parser.add_argument("--audio", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--side", choices=["ours", "theirs"])
    return parser.parse_known_args(argv)


def load(args, further, folder):
    """The hparams of SimCLR with clean crops and no head."""
    sys.path.insert(0, str(RECIPE))
    from audio_folder_prepare import prepare_audio_folder

    from speechbrain_ssl.options import load_experiment

    _, run_opts, hparams, _ = load_experiment(
        [
            str(RECIPE / "hparams/train_simclr.yaml"),
            f"--data_folder={args.audio}",
            f"--output_folder={folder}",
            f"--precision={args.precision}",
            f"--optimizer_step_limit={args.steps + SETTLING}",
            "--noprogressbar=True",
            "--head=null",
            "--augmentation=null",
            *further,
        ]
    )
    prepare_audio_folder(hparams["data_folder"], hparams["train_annotation"])
    return run_opts, hparams


def ours(args, hparams, run_opts):
    """Seconds of a step of this package."""
    from speechbrain_ssl.brains import experiment

    steps = args.steps + experiment.SETTLING_STEPS
    brain, seconds = experiment.time_steps(hparams, run_opts, steps)
    return seconds, str(brain.device)


class Encoder(torch.nn.Module):
    """The same encoder with sslsv's interface: [B, T] to [B, dim]."""

    def __init__(self, branch, emb_dim, device, precision):
        super().__init__()
        self.branch, self.encoder_dim = branch, emb_dim
        self.kind, self.bf16 = torch.device(device).type, precision == "bf16"

    def forward(self, x, *args, **kwargs):
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.bf16):
            embedding = self.branch.embed(x)
        return embedding.float()


def theirs(args, hparams, run_opts):
    """Seconds of a step of sslsv's trainer."""
    sys.path.insert(0, args.checkout)
    from sslsv.datasets.SSLDataset import SSLDataset
    from sslsv.methods.SimCLR.SimCLR import SimCLR, SimCLRConfig
    from sslsv.trainer.EpochLogger import EpochLogger
    from sslsv.trainer.Trainer import Trainer, TrainerConfig

    device = run_opts["device"] or (
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    sampler, size = hparams["view_sampler"], hparams["batch_size"]
    config = SimCLRConfig()
    config.enable_projector = False
    moments = []

    class Timed(SimCLR):
        def on_train_step_end(self, *step):
            super().on_train_step_end(*step)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            moments.append(time.monotonic())

    model = Timed(
        config,
        lambda: Encoder(
            hparams["student"], hparams["emb_dim"], device, args.precision
        ),
    ).to(device)
    files = sorted(
        path
        for path in glob.glob(f"{args.audio}/**/*", recursive=True)
        if path.endswith((".wav", ".flac"))
    )
    count = (args.steps + SETTLING + 1) * size
    files = (files * (1 + count // len(files)))[:count]
    given = {
        "base_path": pathlib.Path("/"),
        "files": files,
        "labels": [0] * len(files),
        "frame_length": sampler.frames[0],
        "min_load_audio_length": 2 * sampler.frames[0],
    }
    known = inspect.signature(SSLDataset.__init__).parameters
    # those of its base class come by **kwargs or by position
    if "kwargs" not in known:
        given = {k: v for k, v in given.items() if k in known}
    dataset = SSLDataset(**given)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=size,
        shuffle=True,
        drop_last=True,
        num_workers=hparams["num_workers"],
        pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer.__new__(Trainer)
    trainer.model = torch.nn.DataParallel(model)
    trainer.train_dataloader, trainer.device = loader, torch.device(device)
    trainer.epoch = 0
    trainer.config = argparse.Namespace(
        trainer=TrainerConfig(epochs=1, batch_size=size)
    )
    trainer._init_optimizer()
    model.train()
    trainer._train_step_loop(EpochLogger())
    moments = moments[SETTLING:]
    seconds = [b - a for a, b in zip(moments, moments[1:])]
    return statistics.median(seconds), str(device)


def one_side(args, further):
    """Times one side in this process; prints a line of JSON."""
    from speechbrain_ssl.runtime import keep_memory

    if args.side == "ours":
        keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        run_opts, hparams = load(args, further, folder)
        measure = ours if args.side == "ours" else theirs
        seconds, device = measure(args, hparams, run_opts)
        views = 2 * hparams["batch_size"]
    print(json.dumps({"views_per_second": views / seconds, "device": device}))


def main(argv=None):
    """Times both sides in turn and prints the ratio."""
    args, further = parse(argv)
    args.checkout, args.audio = map(
        os.path.abspath, (args.checkout, args.audio)
    )
    if not os.path.isdir(os.path.join(args.checkout, "sslsv", "methods")):
        sys.exit(
            f"{args.checkout} is no checkout of sslsv: it has no sslsv/methods."
        )
    if args.side:
        one_side(args, further)
        return
    found = {"ours": [], "theirs": []}
    for _ in range(args.turns):
        for side, rates in found.items():
            run = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    *(argv or sys.argv[1:]),
                    f"--side={side}",
                ],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            last = json.loads(run.stdout.strip().splitlines()[-1])
            rates.append(last["views_per_second"])
    medians = {side: statistics.median(rates) for side, rates in found.items()}
    print(
        json.dumps(
            {
                "views_per_second": found,
                "ratio": medians["ours"] / medians["theirs"],
                "precision": args.precision,
                "device": last["device"],
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
