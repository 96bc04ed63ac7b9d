"""A GPU that is not there: finds tensors on the wrong device on any machine.

Inside ``pretended_cuda`` all work is done on the CPU, but each tensor
remembers where it is meant to be. ``tensor.device`` names the pretended
device, and operations raise what torch raises if tensors on two devices meet.

Two modes of torch share the work. ``_Rewrite`` sees calls as Python makes
them and turns ``cuda`` into ``cpu`` there. ``_Check`` sees the operators that
torch runs, also those of composite functions and of the backward pass.
"""

import contextlib
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


@contextlib.contextmanager
def pretended_cuda():
    """Pretends one CUDA device for the code inside.

    Example
    -------
    >>> with pretended_cuda():
    ...     weight = torch.ones(2, device="cuda")
    ...     print(weight.device, (2 * weight).device, weight.cpu().device)
    cuda:0 cuda:0 cpu
    """
    with contextlib.ExitStack() as stack:
        for name, stand_in in _STAND_INS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(_Check())
        stack.enter_context(_Rewrite())
        yield


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


def _move(x, device, dtype=None, copy=False):
    """What ``Tensor.to`` does."""
    if dtype is not None:
        x = x.to(dtype)
    cuda = on_cuda(x) if device is None else device.type == "cuda"
    return _Copy.apply(x, cuda) if copy or cuda != on_cuda(x) else x


def _to(x, *args, copy=False, **kwargs):
    """``Tensor.to`` in all its forms."""
    if args and isinstance(args[0], torch.Tensor):
        return _move(x, CUDA if on_cuda(args[0]) else CPU, args[0].dtype, copy)
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    return _move(x, device, dtype, copy)


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
        device = kwargs.get("device")
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
        result = function(*args, **kwargs)
        if any(places):
            known = {x.untyped_storage()._cdata for x in inputs}
            for x in _tensors(result):
                if x.untyped_storage()._cdata not in known:
                    _put(x, True)
        return result


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
    torch.Tensor.cuda: lambda x, *_, **__: _move(x, CUDA),
    torch.Tensor.cpu: lambda x, **_: _move(x, CPU),
    torch.Tensor.pin_memory: lambda x, *_: x,
}


def _nothing(*args, **kwargs):
    """Stands for what needs a real device."""


_STAND_INS = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "is_bf16_supported": lambda *_: False,
    "current_device": lambda: 0,
    "set_device": _nothing,
    "synchronize": _nothing,
    "is_current_stream_capturing": lambda: False,
    "get_rng_state": lambda *_: torch.zeros(1, dtype=torch.uint8),
    "set_rng_state": _nothing,
}
