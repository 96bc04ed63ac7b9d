"""Rates and memory of training steps at full size, for ``speechbrain-ssl plan``.

    > python benchmarks/rates.py recipes/VoxCeleb/SSL/hparams/train_dino.yaml \
        --out rates.json [--utterances 64] [--steps 20] [overrides]

Steps on noise in memory, without loader and augmentation: the audio must arrive
as fast. Measured are utterances per second of one process, bytes that autograd
keeps for each utterance, bytes of weights, gradients and optimizer, the size
of a checkpoint, floating-point operations, and seconds of audio that the
encoder embeds in a second. The file gets a record for the YAML and the device;
one that is there is replaced.

For a YAML with WavLM, ``--random_wavlm`` makes a network of WavLM Base's sizes
with random weights instead of a download.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import torch
from objective import crops, one_step
from speechbrain.utils.distributed import infer_device
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_ssl.files import read_json, write_json
from speechbrain_ssl.nnet.parameters import parameter_groups
from speechbrain_ssl.options import load_experiment
from speechbrain_ssl.runtime import keep_memory


class KeptBytes:
    """Bytes of the distinct storages that autograd keeps."""

    def __init__(self):
        self.storages = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            self._keep, lambda x: x
        )

    def _keep(self, x):
        if isinstance(x, torch.Tensor) and not isinstance(
            x, torch.nn.Parameter
        ):
            storage = x.untyped_storage()
            # the tensor stays alive: its address is nobody else's
            self.storages[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    def total(self):
        """Their sum."""
        return sum(size for size, _ in self.storages.values())


def step_of_labels(hparams, classifier, optimizer, utterances):
    """A step of stage two: a crop, and its clean view without gradient."""
    sampler, encoder = hparams["view_sampler"], hparams["encoder"]
    device = next(encoder.parameters()).device
    wavs, _ = crops(sampler, utterances, device)
    labels = torch.zeros(utterances, dtype=torch.long, device=device)
    cosines = classifier(encoder(wavs[:1]).embedding[0])
    clean = None
    if sampler.clean_views:
        with torch.no_grad():
            clean = classifier(encoder.embed(wavs[0]))
    selected = torch.ones(utterances, dtype=torch.bool, device=device)
    hparams["loss"](cosines, labels, clean, selected, 1e9)[0].backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def measure(hparams, utterances, classes, steps, device, precision):
    """Measures steps.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file, of either stage.
    utterances : int
        In a step.
    classes : int
        Pseudo-labels, for stage two.
    steps : int
        Steps that are timed, after two that are not.
    device : str
        Where.
    precision : str
        bf16 or fp32.

    Returns
    -------
    dict
        See the top of this file.
    """
    if "student" in hparams:
        modules = torch.nn.ModuleDict(hparams["modules"])
        branch = hparams["student"]
    else:
        speeds = len(hparams["view_sampler"].speeds)
        classifier = hparams["classifier"](classes=classes * speeds)
        branch = hparams["encoder"]
        modules = torch.nn.ModuleDict(
            {"encoder": branch, "classifier": classifier}
        )
    modules.to(device)
    optimizer = hparams["opt_class"](parameter_groups(modules))
    autocast = torch.autocast(
        torch.device(device).type,
        torch.bfloat16,
        enabled=precision == "bf16",
    )

    def step():
        with autocast:
            if "student" in hparams:
                views = crops(hparams["view_sampler"], utterances, device)
                one_step(hparams, optimizer, views, {})
            else:
                step_of_labels(hparams, classifier, optimizer, utterances)

    def seconds(function, repeats):
        function()
        wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            function()
        wait(device)
        return (time.perf_counter() - started) / repeats

    step()  # what is made once is made now
    kept = KeptBytes()
    with FlopCounterMode(display=False) as counter, kept.hooks:
        step()
    kept_bytes = kept.total()
    kept.storages.clear()
    duration = seconds(step, steps)
    moments = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    parameters = list(modules.parameters())
    learned = sum(4 * p.numel() for p in parameters if p.requires_grad)
    weights = sum(4 * p.numel() for p in parameters)
    rate = hparams["view_sampler"].sample_rate
    wavs = 0.1 * torch.randn(utterances, 8 * rate, device=device)
    branch.eval()

    def embed():
        with torch.no_grad(), autocast:
            return branch.embed(wavs)

    return {
        "utterances_per_second": utterances / duration,
        "kept_bytes_per_utterance": kept_bytes / utterances,
        "state_bytes": weights + learned + moments,
        "checkpoint_bytes": weights + moments,
        "flops_per_utterance": counter.get_total_flops() / utterances,
        "embedded_seconds_per_second": 8 * utterances / seconds(embed, 2),
        "emb_dim": embed().shape[1],
    }


def wait(device):
    """Waits for an accelerator."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def random_wavlm(folder):
    """Writes a network of WavLM Base's sizes with random weights."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    WavLMModel(WavLMConfig()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def load(args, further):
    """Loads the hparams file with what it needs here."""
    given = [args.hparams_file, "--data_folder=.", *further]
    given.append(f"--output_folder={args.scratch}/out")
    with open(args.hparams_file, encoding="utf-8") as file:
        keys = [line.split(":")[0] for line in file]
    for key in ("pseudo_labels", "continue_from", "speakers"):
        if key in keys:
            given.append(f"--{key}=.")
    if "prepare" in keys:
        given.append("--prepare=null")
    if args.random_wavlm:
        folder = random_wavlm(f"{args.scratch}/wavlm")
        given.append(f"--wavlm_source={folder}")
    _, run_opts, hparams, _ = load_experiment(given)
    return run_opts, hparams


def main():
    """Measures and writes."""
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("hparams_file")
    parser.add_argument("--out", default="rates.json")
    parser.add_argument("--utterances", type=int, help="default: batch_size")
    parser.add_argument("--classes", type=int, default=7500)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--random_wavlm", action="store_true")
    args, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as args.scratch:
        run_opts, hparams = load(args, further)
        device = str(run_opts["device"] or infer_device())
        utterances = args.utterances or hparams["batch_size"]
        found = measure(
            hparams,
            utterances,
            args.classes,
            args.steps,
            device,
            run_opts["precision"],
        )
    name = "CPU"
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    record = {
        "hparams": pathlib.Path(args.hparams_file).stem,
        "device": name,
        "utterances": utterances,
        "precision": run_opts["precision"],
        "torch": torch.__version__,
        **found,
    }
    records = read_json(args.out) if os.path.isfile(args.out) else []
    same = record["hparams"], record["device"]
    records = [r for r in records if (r["hparams"], r["device"]) != same]
    write_json(args.out, [*records, record])
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
