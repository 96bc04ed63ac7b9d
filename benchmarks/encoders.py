"""Parameters, MACs and speed of the encoders in hparams/.

    > OMP_NUM_THREADS=1 python benchmarks/encoders.py

prints a Markdown table. Speeds are views of a second of CPU time, of one
thread: other processes on the machine change them little. A training step is
features, forward and backward of a batch, without optimizer and teacher. The
transformer has random weights, in the sizes of WavLM Base.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import torch
from hyperpyyaml import load_hyperpyyaml
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_ssl.nnet.branch import Branch

ROOT = pathlib.Path(__file__).parents[1]


def build(path, folder):
    """The encoder of a YAML."""
    text, overrides = path.read_text(encoding="utf-8"), {}
    if "transformer_source" in text:
        import transformers

        model = transformers.WavLMModel(transformers.WavLMConfig())
        model.save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
        overrides = {"transformer_source": folder}
    found = load_hyperpyyaml(text, overrides)
    keys = ("compute_features", "mean_var_norm", "embedding_model")
    return Branch(*(found[key] for key in keys))


def macs(branch, seconds):
    """Multiplications of matrices and convolutions for one view."""
    branch.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        branch.embed(torch.randn(1, round(16000 * seconds)))
    return counter.get_total_flops() / 2


def cpu_seconds(function, repeats):
    """Median CPU seconds of a call, after a first one."""
    function()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        found.append(time.process_time() - start)
    return statistics.median(found)


def measure(path, args):
    """A row of the table."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        branch = build(path, folder)
    wavs = torch.randn(args.batch, round(16000 * args.seconds))

    def train():
        branch.zero_grad()
        branch.embed(wavs).square().sum().backward()

    def embed():
        with torch.no_grad():
            branch.embed(wavs)

    count = sum(p.numel() for p in branch.embedding_model.parameters())
    work = macs(branch, args.seconds)
    embedding = cpu_seconds(embed, args.repeats)
    branch.train()
    training = cpu_seconds(train, args.repeats)
    dim = branch.eval().embed(wavs[:1]).shape[-1]
    return [
        f"`{path.stem}`",
        str(dim),
        f"{count / 1e6:.2f}",
        f"{work / 1e9:.2f}",
        f"{args.batch / training:.1f}",
        f"{args.batch / embedding:.1f}",
    ]


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    head = ["encoder", "embedding", "parameters (M)", "MACs (G)"]
    head += ["training, views/s", "embedding, views/s"]
    print(f"views of {args.seconds:g} s, batches of {args.batch}\n")
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for path in args.files or sorted((ROOT / "hparams").glob("*.yaml")):
        print(f"| {' | '.join(measure(path, args))} |", flush=True)


if __name__ == "__main__":
    main()
