"""Checks of what the user gave, each failing with one sentence that names it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.theorems.subject import InputError, deep_copy

if TYPE_CHECKING:
    from theodolite.theorems.subject import LossFunction, Split, Subject

_HALF = (torch.float16, torch.bfloat16)


def check_weight_decay(weight_decay: float | None) -> float | None:
    """Return the weight decay, refusing what is not a finite number >= 0."""
    if weight_decay is None:
        return None
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, (int, float)):
        raise InputError(f"weight_decay: expected a number >= 0 or None, got {weight_decay!r}")
    if not math.isfinite(weight_decay) or weight_decay < 0:
        raise InputError(f"weight_decay: expected a finite number >= 0, got {weight_decay}")
    return float(weight_decay)


def check_image_shape(shape: Any, X: Tensor) -> tuple[int, ...] | None:
    """Return (c, h, w) or (h, w), refusing what is no shape of the flat inputs X."""
    if shape is None:
        return None
    entries = tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else ()
    if len(entries) not in (2, 3) or any(
        isinstance(e, bool) or not isinstance(e, int) or e < 1 for e in entries
    ):
        raise InputError(f"image_shape: expected (channels, height, width) or (height, width), got {shape!r}")
    if X.ndim != 2 or math.prod(entries) != X.shape[1]:
        text = "x".join(map(str, entries))
        raise InputError(
            f"image_shape: expected flat inputs of {math.prod(entries)} entries for {text}, got inputs of shape "
            f"{tuple(X.shape[1:])}"
        )
    return entries


def working_copy(model: Any, device: str | torch.device | None, notes: list[str]) -> nn.Module:
    """Return a copy of the model in evaluation mode, in float32 or float64, on the device."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    model = _unwrapped(model, notes)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise InputError(
                f"model: '{name}' is not initialized; run the model once on data before auditing it"
            )
        if tensor.is_meta:
            raise InputError(
                f"model: '{name}' is on the meta device, which holds no numbers; load its weights"
            )
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            what = "NaN" if bool(torch.isnan(tensor).any()) else "infinite"
            entries = "1 entry that is" if bad == 1 else f"{bad:,} entries that are"
            raise InputError(f"model: '{name}' has {entries} not finite ({what}); expected finite numbers")
    if model.training:
        notes.append("the model was in training mode; its evaluation mode was audited")
    copied = deep_copy(model)
    try:
        copied.eval()
    except Exception as error:  # a stranger's method; its own words are the true cause
        raise InputError(f"model: its eval() raised {type(error).__name__}: {_first_line(error)}") from error
    if any(p.dtype in _HALF for p in [*copied.parameters(), *copied.buffers()]):
        notes.append(
            "half-precision weights were converted exactly to float32, in which everything was computed"
        )
        copied = copied.float()
    if device is not None:
        try:
            copied = copied.to(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"device: expected a device present on this machine, got {str(device)!r} ({reason})"
            ) from error
    frozen = [n for n, p in copied.named_parameters() if not p.requires_grad]
    if frozen and len(frozen) < len(list(copied.parameters())):
        notes.append(
            f"{len(frozen)} frozen parameters ({frozen[0]}, ...) count as constants, not as parameters"
        )
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _unwrapped(model: nn.Module, notes: list[str]) -> nn.Module:
    """Return the module that a wrapper runs, which has the same function and can be traced."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        elif type(model).__name__ == "OptimizedModule":  # of torch.compile, whose class is costly to import
            inner = model._orig_mod
        else:
            return model
        assert isinstance(inner, nn.Module)
        notes.append(f"the module inside {type(model).__name__} was audited")
        model = inner


def device_of(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """Return the device to compute on: the given one, or the model's own."""
    if device is not None:
        return torch.device(device)
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if first is None else first.device


def choose_loss(loss: Any, y: Any) -> tuple[str, LossFunction]:
    """Return the loss' name and function (mean over the batch)."""
    if loss is None:
        array = y if isinstance(y, Tensor) else np.asarray(y)
        floating = array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"
        loss = "mse" if floating else "cross_entropy"
    if loss == "cross_entropy":
        return "cross_entropy", F.cross_entropy
    if loss == "mse":
        return "mse", F.mse_loss
    if callable(loss):
        return getattr(loss, "__name__", type(loss).__name__), loss
    raise InputError(f"loss: expected 'cross_entropy', 'mse' or a function of (output, target), got {loss!r}")


def as_tensor(array: Any, argument: str) -> Tensor:
    """Return an array-like as a tensor that does not require gradients."""
    if isinstance(array, Tensor):
        return array.detach()
    try:
        converted = np.asarray(array)
    except ValueError as error:
        raise InputError(f"{argument}: expected an array, got {type(array).__name__} ({error})") from error
    if converted.dtype.kind not in "fiub":
        raise InputError(f"{argument}: expected numbers, got an array of dtype {converted.dtype}")
    return torch.from_numpy(np.array(converted))


def to_tensors(
    model: nn.Module, X: Any, y: Any, loss_name: str, split: Split, notes: list[str]
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets as tensors of the model's dtype on the CPU."""
    where = "" if split == "train" else f"{split} "
    x, target = as_tensor(X, f"{where}X").cpu(), as_tensor(y, f"{where}y").cpu()
    if x.ndim < 2:
        raise InputError(
            f"{where}X: expected shape (n, ...) with at least two dimensions, got {tuple(x.shape)}"
        )
    if len(x) == 0:
        raise InputError(f"{where}X: expected at least one sample, got none")
    if target.ndim == 0 or len(x) != len(target):
        size = "a scalar" if target.ndim == 0 else str(len(target))
        raise InputError(f"{where}X, y: expected equal lengths, got {len(x)} and {size}")
    for name, tensor in ((f"{where}X", x), (f"{where}y", target)):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = (
                int((~torch.isfinite(tensor)).flatten(1).any(1).sum())
                if tensor.ndim > 1
                else int((~torch.isfinite(tensor)).sum())
            )
            raise InputError(
                f"{name}: expected finite numbers, got NaN or infinity in {bad} of {len(tensor)} samples"
            )
    takes_tokens = any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in model.modules())
    floats = [p for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()]
    dtype = floats[0].dtype if floats else (x.dtype if x.dtype == torch.float64 else torch.float32)
    if x.is_floating_point() or not takes_tokens:
        if x.dtype == torch.uint8:
            notes.append("inputs are uint8 and were converted without scaling")
        x = x.to(dtype)
    if loss_name == "cross_entropy":
        target = _as_classes(target, f"{where}y")
    elif target.is_floating_point() or loss_name == "mse":
        target = target.to(dtype)
    return x.contiguous(), target


def _as_classes(target: Tensor, name: str) -> Tensor:
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 1:
        raise InputError(f"{name}: expected class numbers of shape (n,), got shape {tuple(target.shape)}")
    if target.is_floating_point() and not bool((target == target.round()).all()):
        raise InputError(f"{name}: expected whole class numbers for cross-entropy, got fractions")
    return target.long()


def check_forward(subject: Subject) -> int:
    """Run the model on two samples and return the number of outputs.

    Refuses what no theorem here can speak of: an exception in forward, an output
    that is not one (n, k) tensor, randomness, dependence between samples.
    """
    x = subject.x[:2].to(subject.device).clone()
    version = x._version
    output = run_forward(subject.model, x)
    if x._version != version:
        raise InputError(
            f"model: {_changing_layer(subject, x)} changes the input of the model in place, "
            "which would change the data; expected a forward that leaves its input as it is"
        )
    if not isinstance(output, Tensor):
        raise InputError(
            f"model: expected the output to be one tensor, got {_describe(output)}; "
            "wrap it in a module that returns the tensor"
        )
    if not output.is_floating_point() or output.ndim != 2 or len(output) != len(x) or not output.shape[1]:
        wanted = f"({len(x)}, k)"
        raise InputError(
            f"model: expected a float output of shape {wanted} for input {tuple(x.shape)}, "
            f"got {output.dtype} of shape {tuple(output.shape)}"
            + ("; nn.Flatten() at its end makes outputs at positions such a row" if output.ndim > 2 else "")
        )
    if not bool(torch.isfinite(output).all()):
        raise InputError("model: expected finite outputs, got NaN or infinity on the first two samples")
    again = run_forward(subject.model, x)
    if not torch.equal(output, again):
        raise InputError(
            f"model: expected the same output for the same input, but {_random_layer(subject, x)} "
            "draws random numbers in evaluation mode"
        )
    try:
        alone = run_forward(subject.model, x[:1])
    except InputError as error:
        raise InputError(
            "model: runs on two samples but not on one, so its samples are not independent; "
            f"{str(error).removeprefix('model: ')}"
        ) from error
    tolerance = 1e-3 * (1.0 + float(output.abs().max()))
    if float((alone[0] - output[0]).abs().max()) > tolerance:
        raise InputError(
            "model: expected each sample's output to depend on that sample alone, but "
            f"{_batch_layer(subject.model)} mixes the samples of a batch"
        )
    return int(output.shape[1])


def check_targets(subject: Subject, split: Split) -> tuple[Tensor, Tensor]:
    """Return the split with targets that fit the outputs."""
    x, y = subject.data[split]
    where = "" if split == "train" else f"{split} "
    if x.shape[1:] != subject.x.shape[1:]:
        raise InputError(
            f"{where}X: expected samples of shape {tuple(subject.x.shape[1:])} as in training, "
            f"got {tuple(x.shape[1:])}"
        )
    if subject.loss_name == "cross_entropy":
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= subject.n_outputs:
            bad = high if low >= 0 else low
            if subject.n_outputs == 1:
                raise InputError(
                    f"{where}y: the model has one output, so cross-entropy knows class 0 alone, got class {bad}; "
                    "for regression give targets that are floats or the loss mse"
                )
            raise InputError(
                f"{where}y: expected class numbers 0 to {subject.n_outputs - 1} "
                f"(the model has {subject.n_outputs} outputs), got {bad}"
            )
    elif subject.loss_name == "mse":
        y = y[:, None] if y.ndim == 1 else y
        if y.shape[1:] != (subject.n_outputs,):
            raise InputError(
                f"{where}y: expected targets of shape (n, {subject.n_outputs}) like the outputs, "
                f"got {tuple(y.shape)}"
            )
    else:
        check_callable_loss(subject, x, y)
    return x, y


def check_callable_loss(subject: Subject, x: Tensor, y: Tensor) -> None:
    """Refuse a user's loss that does not return one finite number."""
    with torch.no_grad():
        output = subject.model(x[:2].to(subject.device))
    try:
        value = subject.loss(output, y[:2].to(subject.device))
    except Exception as error:  # a stranger's function; its own words are the true cause
        raise InputError(
            f"loss: {subject.loss_name} raised {type(error).__name__}: {_first_line(error)}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not bool(torch.isfinite(value).all()):
        raise InputError(f"loss: expected {subject.loss_name} to return one finite number, got {value!r}")


def run_forward(model: nn.Module, x: Tensor) -> Any:
    """Run the model; an exception becomes a sentence that names the layer it came from."""
    stack: list[str] = []
    with _tracked(model, stack), torch.no_grad():
        try:
            return model(x)
        except (Exception, SystemExit) as error:  # a stranger's forward; its own words are the true cause
            where = f"layer {stack[-1]}" if stack else "the model's own forward"
            raise InputError(
                f"model: could not be run on data of shape {tuple(x.shape)}: {where} raised "
                f"{type(error).__name__}: {_first_line(error)}"
            ) from error


@contextmanager
def _tracked(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the names of the modules that are being run on a stack."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or (
            not name and next(module.children(), None) is not None
        ):
            continue
        label = (
            f"'{name}' ({type(module).__name__})" if name else f"{type(module).__name__} (the model itself)"
        )
        handles.append(module.register_forward_pre_hook(lambda m, i, label=label: stack.append(label)))
        handles.append(module.register_forward_hook(lambda m, i, o: stack.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "(no message)"


def _describe(output: Any) -> str:
    if isinstance(output, dict):
        return f"a dict with keys {', '.join(map(repr, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}"
    name = type(output).__name__
    article = "an" if name[0].lower() in "aeio" or name == "ndarray" else "a"
    return "None" if output is None else f"{article} {name}"


def _random_layer(subject: Subject, x: Tensor) -> str:
    graph = subject.graph
    for node in graph.random_nodes():
        return node.where
    outputs: list[dict[str, Tensor]] = [{}, {}]
    for record in outputs:
        handles = []
        for name, module in subject.model.named_modules():
            if name and next(module.children(), None) is None:

                def hook(
                    m: nn.Module, i: Any, o: Any, name: str = name, record: dict[str, Tensor] = record
                ) -> None:
                    if isinstance(o, Tensor):
                        record[name] = o.detach()

                handles.append(module.register_forward_hook(hook))
        run_forward(subject.model, x)
        for handle in handles:
            handle.remove()
    for name in outputs[0]:
        if name in outputs[1] and not torch.equal(outputs[0][name], outputs[1][name]):
            return (
                f"layer '{name}' ({type(subject.model.get_submodule(name)).__name__}) or the code before it"
            )
    return "the model's own forward"


def _changing_layer(subject: Subject, x: Tensor) -> str:
    """Name the layer during which the model's input is changed, or the model's own forward."""
    found: list[str] = []
    versions: list[int] = []
    handles = []
    for name, module in subject.model.named_modules():
        if name and next(module.children(), None) is None:

            def after(m: nn.Module, i: Any, o: Any, name: str = name) -> None:
                if x._version != versions.pop():
                    found.append(f"layer '{name}' ({type(m).__name__})")

            handles.append(module.register_forward_pre_hook(lambda m, i: versions.append(x._version)))
            handles.append(module.register_forward_hook(after))
    run_forward(subject.model, x)
    for handle in handles:
        handle.remove()
    return found[0] if found else "the model's own forward"


def _batch_layer(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return f"layer '{name}' ({type(module).__name__} without running statistics)"
    return "its forward"
