"""What the objective costs beside the encoder, and the memory of its logits.

    > python benchmarks/objective.py recipes/VoxCeleb/SSL/hparams/train_dino.yaml \
        [--utterances 4] [--repeats 3] [overrides of the hparams file]

Steps on noise, timed in parts: the encoder (features and embedding model of
student and teacher, backward through the student's), and everything else
(heads, loss, backward through them, optimizer step, teacher update). Of the
latter, optimizer and teacher do not grow with the batch, so that their share
falls where batches are larger than what fits here: the forecast for another
batch is the sum of both. Memory is counted in copies of the student's logits:
tensors that large that live at once, and those that autograd keeps. Prints
JSON.
"""

import argparse
import json
import statistics
import time
import weakref

import torch
from speechbrain.utils.distributed import infer_device
from torch.utils._python_dispatch import TorchDispatchMode

from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.nnet.parameters import parameter_groups
from speechbrain_ssl.options import load_experiment
from speechbrain_ssl.runtime import keep_memory


class LargeTensors(TorchDispatchMode):
    """Counts storages of at least so many bytes that live at once."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.alive = set()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self._note(x.untyped_storage())
        return result

    def _note(self, storage):
        key = storage.data_ptr()
        if storage.nbytes() >= self.size and key not in self.alive:
            self.alive.add(key)
            weakref.finalize(storage, self.alive.discard, key)
            self.most = max(self.most, len(self.alive))


def clock(function, times, name):
    """Calls a function and adds what it took to a list."""
    started = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times.setdefault(name, []).append(time.perf_counter() - started)
    return result


def crops(sampler, utterances, device):
    """Noise in the shape of global and local crops."""
    return [
        [0.1 * torch.randn(utterances, frames, device=device)] * count
        for count, frames in zip(sampler.counts, sampler.frames)
    ]


def one_step(hparams, optimizer, views, times):
    """A training step, timed in parts."""
    student, objective = hparams["student"], hparams["objective"]
    teacher = hparams["modules"].get("teacher")
    global_crops, local_crops = views
    sees = hparams["student_sees_global"]
    seen = global_crops + local_crops if sees else local_crops

    def embed(branch, wavs):
        head, branch.head = branch.head, torch.nn.Identity()
        embedding = branch(wavs).embedding
        branch.head = head
        return embedding

    def project(branch, embedding):
        flat = branch.head(embedding.flatten(0, 1))
        return BranchOutput(embedding, flat.unflatten(0, embedding.shape[:2]))

    encoded = clock(lambda: embed(student, seen), times, "student_encoder")
    cut = encoded.detach().requires_grad_()
    other = None
    if teacher is not None:
        with torch.no_grad():
            other = clock(
                lambda: embed(teacher.network, global_crops),
                times,
                "teacher_encoder",
            )
            other = clock(
                lambda: project(teacher.network, other), times, "heads"
            )
    mine = clock(lambda: project(student, cut), times, "heads")
    view_id = tuple(range(len(global_crops + local_crops)))
    mine = mine._replace(view_id=view_id[-len(seen) :])
    other = other and other._replace(view_id=view_id[: len(global_crops)])
    with LargeTensors(mine.projection.numel() * 4) as large:
        loss, _ = clock(lambda: objective(mine, other, 0.5), times, "loss")
    clock(loss.backward, times, "backward_of_heads_and_loss")
    if hasattr(objective, "commit"):
        with torch.no_grad():
            clock(lambda: objective.commit(mine, other), times, "commit")
    clock(lambda: encoded.backward(cut.grad), times, "backward_of_encoder")
    clock(optimizer.step, times, "optimizer")
    optimizer.zero_grad(set_to_none=True)
    if teacher is not None:
        clock(lambda: teacher.update(student, 0.5), times, "teacher_update")
    return large.most


def main():
    """Measures and prints."""
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("hparams_file")
    parser.add_argument("--utterances", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args, further = parser.parse_known_args()
    _, run_opts, hparams, _ = load_experiment(
        [args.hparams_file, "--data_folder=.", *further]
    )
    device = run_opts["device"] or infer_device()
    modules = torch.nn.ModuleDict(hparams["modules"]).to(device)
    optimizer = hparams["opt_class"](parameter_groups(modules))
    views = crops(hparams["view_sampler"], args.utterances, device)
    times, copies = {}, 0
    for repeat in range(args.repeats + 1):
        if repeat == 1:
            times.clear()  # the first step warms up
        copies = one_step(hparams, optimizer, views, times)
    calls = {name: len(found) // args.repeats for name, found in times.items()}
    seconds = {
        name: calls[name] * statistics.median(found)
        for name, found in times.items()
    }
    encoder = sum(v for name, v in seconds.items() if "encoder" in name)
    fixed = seconds["optimizer"] + seconds.get("teacher_update", 0.0)
    growing = sum(seconds.values()) - encoder - fixed
    batch = hparams["batch_size"]
    grown = growing * batch / args.utterances + fixed
    result = {
        "utterances": args.utterances,
        "seconds": {name: round(v, 4) for name, v in seconds.items()},
        "beside_encoder_share": (growing + fixed) / encoder,
        f"forecast_share_at_{batch}_utterances": grown
        / (encoder * batch / args.utterances),
        "copies_of_logits_alive_in_the_loss": copies,
        "device": str(device),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
