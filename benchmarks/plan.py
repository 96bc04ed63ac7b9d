"""What a full-scale training would cost: a forecast from one counted step.

    > python benchmarks/plan.py recipes/VoxCeleb/SSL/hparams/train_dino.yaml \
        [--utterances 2] [--corpus 1092009] [--tflops 40] [overrides]

One training step on noise, of few utterances: its floating-point operations
are counted, not estimated, and so are the bytes that autograd keeps for the
backward pass. Both grow with the batch. GPU hours are the operations of all epochs at
``--tflops`` sustained, which is the assumption here: 40 is an eighth of what an
A100 can do in bf16, as small kernels allow; audio must arrive as fast. Memory is
that of one process with its own batch in float32, without what the allocator
loses; autocast needs half of the activations. Prints JSON.

For a YAML with WavLM, ``--random_wavlm`` makes a network of WavLM Base's sizes
with random weights instead of a download.
"""

import argparse
import json
import tempfile
import time

import torch
from objective import crops, one_step
from torch.utils.flop_counter import FlopCounterMode

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
    wavs, _ = crops(sampler, utterances, "cpu")
    labels = torch.zeros(utterances, dtype=torch.long)
    cosines = classifier(encoder(wavs[:1]).embedding[0])
    clean = None
    if sampler.clean_views:
        with torch.no_grad():
            clean = classifier(encoder.embed(wavs[0]))
    trusted = torch.ones(utterances, dtype=torch.bool)
    hparams["loss"](cosines, labels, clean, trusted, 1e9)[0].backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def count_step(hparams, utterances, classes):
    """Counts a step.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file, of either stage.
    utterances : int
        In the step.
    classes : int
        Pseudo-labels, for stage two.

    Returns
    -------
    dict
        ``flops`` and ``kept_bytes`` of the step, ``seconds`` here, and
        ``state_bytes`` of weights, gradients and optimiser.
    """
    if "student" in hparams:
        modules = torch.nn.ModuleDict(hparams["modules"])
        views = crops(hparams["view_sampler"], utterances, "cpu")
    else:
        speeds = len(hparams["view_sampler"].speeds)
        classifier = hparams["classifier"](classes=classes * speeds)
        modules = torch.nn.ModuleDict(
            {"encoder": hparams["encoder"], "classifier": classifier}
        )
    optimizer = hparams["opt_class"](parameter_groups(modules))

    def step():
        if "student" in hparams:
            one_step(hparams, optimizer, views, {})
        else:
            step_of_labels(hparams, classifier, optimizer, utterances)

    step()  # what is made once is made now
    kept = KeptBytes()
    with FlopCounterMode(display=False) as counter, kept.hooks:
        step()
    started = time.perf_counter()
    step()
    moments = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    parameters = list(modules.parameters())
    learnt = sum(4 * p.numel() for p in parameters if p.requires_grad)
    weights = sum(4 * p.numel() for p in parameters)
    return {
        "flops": counter.get_total_flops(),
        "kept_bytes": kept.total(),
        "seconds": time.perf_counter() - started,
        "state_bytes": weights + learnt + moments,
        "checkpoint_bytes": weights + moments,
    }


def load(args, further):
    """Loads the hparams file with what it needs here."""
    given = [args.hparams_file, "--data_folder=.", *further]
    given.append(f"--output_folder={args.scratch}/out")
    with open(args.hparams_file, encoding="utf-8") as file:
        keys = [line.split(":")[0] for line in file]
    for key in ("pseudo_labels", "continue_from", "speakers"):
        if key in keys:
            given.append(f"--{key}=.")
    if args.random_wavlm:
        from transformers import (
            Wav2Vec2FeatureExtractor,
            WavLMConfig,
            WavLMModel,
        )

        folder = f"{args.scratch}/wavlm"
        WavLMModel(WavLMConfig()).save_pretrained(folder)
        Wav2Vec2FeatureExtractor().save_pretrained(folder)
        given.append(f"--wavlm_source={folder}")
    return load_experiment(given)[2]


def main():
    """Counts and prints."""
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("hparams_file")
    parser.add_argument("--utterances", type=int, default=2)
    parser.add_argument("--corpus", type=int, default=1_092_009)
    parser.add_argument("--classes", type=int, default=7500)
    parser.add_argument("--tflops", type=float, default=40.0)
    parser.add_argument("--random_wavlm", action="store_true")
    args, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as args.scratch:
        hparams = load(args, further)
        counted = count_step(hparams, args.utterances, args.classes)
    epochs, batch = hparams["epoch_counter"].limit, hparams["batch_size"]
    flops = counted["flops"] / args.utterances
    kept = counted["kept_bytes"] * batch / args.utterances
    seconds = flops * args.corpus * epochs / (args.tflops * 1e12)
    result = {
        "gflops_per_utterance": flops / 1e9,
        "epochs": epochs,
        f"gpu_hours_at_{args.tflops:g}_tflops": seconds / 3600,
        "utterances_per_second_at_that": args.tflops * 1e12 / flops,
        "utterances_per_second_here": args.utterances / counted["seconds"],
        "batch_per_process": batch,
        "activation_gb": kept / 1e9,
        "weights_gradients_optimizer_gb": counted["state_bytes"] / 1e9,
        "checkpoint_gb": counted["checkpoint_bytes"] / 1e9,
    }
    print(json.dumps({k: _short(v) for k, v in result.items()}, indent=2))


def _short(value):
    """Three digits are more than a forecast knows."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
