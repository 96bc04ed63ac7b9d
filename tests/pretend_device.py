"""A GPU that is not there: finds tensors on the wrong device on any machine.

Inside ``pretended_cuda`` all work is done on the CPU, but each tensor
remembers where it is meant to be. ``tensor.device`` names the pretended
device, and operations raise what torch raises if tensors on two devices meet.

Two modes of torch share the work. ``_Rewrite`` sees calls as Python makes
them and turns ``cuda`` into ``cpu`` there. ``_Check`` sees the operators that
torch runs, also those of composite functions and of the backward pass.

``WAITS`` lists where the host would have waited for the device: values
that Python reads, shapes that depend on values, and copies between host and
device that block. A read through ``devices.Later`` does not count: it waits
for what was computed before it was made, not for what was asked for since.
"""

import contextlib
import traceback
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
# operators that read a CUDA tensor at places that a CPU tensor names
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
# operators whose other operand may be a scalar tensor on the CPU
WITH_SCALAR = set(
    "add sub rsub mul div pow fmod remainder floor_divide maximum minimum "
    "clamp_min clamp_max fill "
    "eq ne lt le gt ge where masked_fill bitwise_and bitwise_or "
    "logical_and logical_or".split()
)
NUMPY = {"numpy", "__array__"}
# operators whose result the host has to know: values, and shapes of values
WAITING = set(
    "_local_scalar_dense nonzero masked_select equal bincount _unique2 unique_dim "
    "unique_consecutive linalg_eig _linalg_eigh linalg_cholesky "
    "linalg_inv linalg_lstsq _linalg_check_errors".split()
)
# functions that make a tensor of values of the host, by a copy that blocks
FROM_VALUES = {"tensor", "as_tensor", "asarray", "new_tensor"}
# what has waited since ``pretended_cuda`` began, and the lines that asked
WAITS = []


@contextlib.contextmanager
def pretended_cuda():
    """Pretends one CUDA device for the code inside.

    Example
    -------
    >>> with pretended_cuda():
    ...     weight = torch.ones(2, device="cuda")
    ...     print(weight.device, (2 * weight).device, weight.cpu().device)
    cuda:0 cuda:0 cpu
    >>> [wait.split(":")[0] for wait in WAITS]
    ['copy to cpu']
    """
    WAITS.clear()
    with contextlib.ExitStack() as stack:
        for name, stand_in in _STAND_INS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(
            mock.patch.object(torch._C, _group.__name__, _grouped)
        )
        stack.enter_context(_Check())
        stack.enter_context(_Rewrite())
        yield


@contextlib.contextmanager
def refused():
    """Raises RuntimeError where a real GPU would be waited for."""
    if not torch.cuda.is_available() or torch.cuda.Event is _Event:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _note(what):
    """Notes a wait, and where it comes from."""
    stack = [
        f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno} {frame.line}"
        for frame in traceback.extract_stack(limit=40)
        if "/torch/" not in frame.filename and frame.filename != __file__
    ]
    WAITS.append(f"{what}: " + " < ".join(stack[:-4:-1]))


def on_cuda(tensor):
    """Whether a tensor is on the pretended device.

    Arguments
    ---------
    tensor : torch.Tensor
        Any tensor.

    Returns
    -------
    bool
        What its storage remembers; what nobody moved is on the CPU.
    """
    return getattr(tensor.untyped_storage(), "pretended", False)


def _put(tensor, cuda):
    """Notes where a tensor is, and all that share its memory."""
    tensor.untyped_storage().pretended = cuda
    return tensor


def _tensors(values):
    """Tensors among arguments or results."""
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


class _Copy(torch.autograd.Function):
    """Copies to the other device; gradients go back to the first one."""

    @staticmethod
    def forward(ctx, x, cuda):
        ctx.cuda = on_cuda(x)
        return _put(x.clone(), cuda)

    @staticmethod
    def backward(ctx, gradient):
        return _put(gradient.clone(), ctx.cuda), None


def _move(x, device, dtype=None, copy=False, non_blocking=False):
    """What ``Tensor.to`` does."""
    if dtype is not None:
        x = x.to(dtype)
    cuda = on_cuda(x) if device is None else device.type == "cuda"
    if cuda != on_cuda(x) and not non_blocking:
        _note(f"copy to {'cuda' if cuda else 'cpu'}")
    return _Copy.apply(x, cuda) if copy or cuda != on_cuda(x) else x


def _to(x, *args, copy=False, **kwargs):
    """``Tensor.to`` in all its forms."""
    if args and isinstance(args[0], torch.Tensor):
        return _move(x, CUDA if on_cuda(args[0]) else CPU, args[0].dtype, copy)
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    return _move(x, device, dtype, copy, non_blocking)


class _Rewrite(TorchFunctionMode):
    """Lets Python believe in the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in _REPLACED:
            return _REPLACED[function](*args, **kwargs)
        if function.__name__ in NUMPY and on_cuda(args[0]):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use "
                "Tensor.cpu() to copy the tensor to host memory first."
            )
        if function is torch.Tensor.tolist and on_cuda(args[0]):
            _note("tolist")
        device = kwargs.get("device")
        is_new = function.__name__ == "new_tensor" and on_cuda(args[0])
        if function.__name__ in FROM_VALUES and (
            is_new or (device and torch.device(device).type == "cuda")
        ):
            if not (_tensors(args) and on_cuda(_tensors(args)[-1])):
                _note(f"values to cuda ({function.__name__})")
        if device is not None:
            kwargs["device"] = CPU
        result = function(*args, **kwargs)
        if function is torch.Tensor.__deepcopy__:
            return _put(result, on_cuda(args[0]))
        if device is not None:
            made = torch.device(device).type == "cuda"
            for x in _tensors(result):
                if on_cuda(x) != made or function is torch.as_tensor:
                    # what shares memory with an argument must not move it
                    shared = _tensors((args, kwargs))
                    if shared or function is torch.as_tensor:
                        return _Copy.apply(x, made)
                    _put(x, made)
        return result


class _Check(TorchDispatchMode):
    """Raises where tensors on two devices meet."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        places = [on_cuda(x) for x in inputs]
        if any(places) and not all(places):
            strangers = [x for x, cuda in zip(inputs, places) if not cuda]
            if not _may_meet(function, args, strangers):
                shapes = [
                    f"{list(x.shape)} on {'cuda:0' if cuda else 'cpu'}"
                    for x, cuda in zip(inputs, places)
                ]
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but "
                    f"{function} got {', '.join(shapes)}"
                )
        if any(places):
            name = function._schema.name.removeprefix("aten::")
            if name in WAITING or _depends_on_values(name, args, places):
                _note(name)
        result = function(*args, **kwargs)
        if any(places):
            known = {x.untyped_storage()._cdata for x in inputs}
            for x in _tensors(result):
                if x.untyped_storage()._cdata not in known:
                    _put(x, True)
        return result


def _depends_on_values(name, args, places):
    """Whether an operator reads values of its operands on the host."""
    if name in INDEXED:  # by a mask, or by numbers that are sent first
        named = [x for x in tree_leaves(args[1]) if x is not None]
        return any(
            x.dtype in (torch.bool, torch.uint8) or (x.ndim and not on_cuda(x))
            for x in named
        )
    if name == "copy_":  # in place, between the two
        return not all(places) and not (len(args) > 2 and args[2])
    return name == "repeat_interleave" and on_cuda(args[0])


def _may_meet(function, args, strangers):
    """Whether an operator takes these CPU tensors along with CUDA ones."""
    name = function._schema.name.removeprefix("aten::")
    if name == "copy_":
        return True
    if name in INDEXED:
        named = {id(x) for x in _tensors(args[1])}
        strangers = [x for x in strangers if id(x) not in named]
    elif name.removesuffix("_") not in WITH_SCALAR:
        return False
    if (name in INDEXED or name.endswith("_")) and not on_cuda(args[0]):
        return False  # the result would be on the CPU
    return all(x.ndim == 0 for x in strangers)


_REPLACED = {
    torch.Tensor.device.__get__: lambda x, *_: CUDA if on_cuda(x) else CPU,
    torch.Tensor.is_cuda.__get__: lambda x, *_: on_cuda(x),
    torch.Tensor.is_cpu.__get__: lambda x, *_: not on_cuda(x),
    torch.Tensor.to: _to,
    torch.Tensor.cuda: lambda x, *_, non_blocking=False, **__: _move(
        x, CUDA, non_blocking=non_blocking
    ),
    torch.Tensor.cpu: lambda x, **_: _move(x, CPU),
    torch.Tensor.pin_memory: lambda x, *_: x,
}


def _nothing(*args, **kwargs):
    """Stands for what needs a real device."""


_group = torch._C._group_tensors_by_device_and_dtype


def _grouped(lists, with_indices=False):
    """Lists of tensors by device and type, as optimizers sort them."""
    return {
        (CUDA if on_cuda(found[0][0]) else device, dtype): (found, indices)
        for (device, dtype), (found, indices) in _group(
            lists, with_indices
        ).items()
    }


class _Event:
    """Stands for ``torch.cuda.Event``: nothing is pending."""

    def record(self):
        """Does nothing."""

    def synchronize(self):
        """Does nothing."""


_STAND_INS = {
    "Event": _Event,
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "is_bf16_supported": lambda *_: False,
    "current_device": lambda: 0,
    "mem_get_info": lambda *_: (1 << 34, 1 << 34),
    "set_device": _nothing,
    "synchronize": _nothing,
    "is_current_stream_capturing": lambda: False,
    "get_rng_state": lambda *_: torch.zeros(1, dtype=torch.uint8),
    "set_rng_state": _nothing,
}
