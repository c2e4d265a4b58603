"""The model and the data under audit, checked once, measured once.

A :class:`Subject` works on a copy of the model in evaluation mode, so that nothing
a theorem does can change the user's own.  It caches the logits and the traced graph;
per-layer quantities are reduced while they stream by, so that no theorem repeats
another's forward pass and none holds all activations.
"""

from __future__ import annotations

import contextlib
import copy
import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.analysis.graph import Graph, Node, trace
from theodolite.theorems.base import NotApplicable

Split = Literal["train", "test"]
LossFunction = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")


class InputError(ValueError):
    """What the user gave cannot be audited; the text is one sentence that names it."""


class Reducer(ABC):
    """Something small computed from every layer's output as batches stream by.

    One instance lives for one pass over the training data.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @abstractmethod
    def wants(self, node: Node) -> bool:
        """Return whether the node's output is needed."""

    @abstractmethod
    def update(self, node: Node, value: Tensor) -> None:
        """Take in the node's output for one batch, shape (batch, ...)."""


R = TypeVar("R", bound=Reducer)


class Subject:
    """A model with its data, loss and regularizer.

    Parameters
    ----------
    model : nn.Module
        Maps a batch (n, ...) to (n, k).  It is copied, never changed.
    X : array or Tensor, shape (n, ...)
        Training inputs.
    y : array or Tensor, shape (n,) or (n, k)
        Class numbers (integers) or regression targets (floats).
    test : (X, y), optional
        Data that was used for no choice whatever.
    loss : {"cross_entropy", "mse"} or function(output, target) -> mean loss, optional
        Guessed from ``y`` when None: integers mean cross-entropy.
    weight_decay : float, optional
        Coefficient w of the training objective mean loss + w/2 * ||parameters||^2
        (the coupled decay of ``torch.optim.SGD``); None means unknown.
    device : str, optional
        Where to compute; the model's own device by default.
    seed : int
        Every random draw follows from it.
    image_shape : tuple of int, optional
        (c, h, w) or (h, w), when the inputs are flattened images: what shifts act on.
    name, data_name : str
        For the report.

    Raises
    ------
    InputError
        One sentence that names the argument or layer, what was expected and what came.
    """

    def __init__(
        self,
        model: nn.Module,
        X: Any,
        y: Any,
        *,
        test: tuple[Any, Any] | None = None,
        loss: str | LossFunction | None = None,
        weight_decay: float | None = None,
        device: str | torch.device | None = None,
        seed: int = 0,
        image_shape: Sequence[int] | None = None,
        name: str = "",
        data_name: str = "",
    ) -> None:
        from theodolite.theorems import validation

        self.notes: list[str] = []
        self.seed = seed
        self.weight_decay = validation.check_weight_decay(weight_decay)
        self.name = name or type(model).__name__
        self.data_name = data_name
        self.deadline: float | None = None
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self._cache: dict[str, Any] = {}
        self._expected: list[type[Reducer]] = []
        self._reduced: dict[type[Reducer], Reducer] = {}
        with self.preserved():
            self.model = validation.working_copy(model, device, self.notes)
            self.device = validation.device_of(self.model, device)
            self.loss_name, self.loss = validation.choose_loss(loss, y)
            self.data: dict[Split, tuple[Tensor, Tensor]] = {}
            pairs: dict[Split, tuple[Any, Any]] = {"train": (X, y)}
            if test is not None:
                pairs["test"] = test
            for split, (inputs, targets) in pairs.items():
                self.data[split] = validation.to_tensors(
                    self.model, inputs, targets, self.loss_name, split, self.notes
                )
            self.n_outputs = validation.check_forward(self)
            for split in self.data:
                self.data[split] = validation.check_targets(self, split)
            self.image_shape = validation.check_image_shape(image_shape, self.x)

    @property
    def x(self) -> Tensor:
        """Training inputs, shape (n, ...)."""
        return self.data["train"][0]

    @property
    def y(self) -> Tensor:
        """Training targets, shape (n,) integers or (n, k) floats."""
        return self.data["train"][1]

    @property
    def n(self) -> int:
        """Number of training samples."""
        return len(self.x)

    @property
    def classification(self) -> bool:
        """Whether the targets are classes."""
        return self.loss_name == "cross_entropy" or not self.y.is_floating_point()

    @property
    def real_input(self) -> bool:
        """Whether the inputs are real vectors (not tokens)."""
        return self.x.is_floating_point()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name; all of them when none is trainable."""
        named = dict(self.model.named_parameters())
        return {k: p for k, p in named.items() if p.requires_grad} or named

    @property
    def graph(self) -> Graph:
        """The traced graph in evaluation mode."""
        return self.once("graph", lambda: trace(self.model, self.x[:2].to(self.device)))

    def once(self, key: str, compute: Callable[[], T]) -> T:
        """Return a small shared result, computed at its first use."""
        if key not in self._cache:
            self._cache[key] = compute()
        result: T = self._cache[key]
        return result

    def generator(self, purpose: str) -> torch.Generator:
        """Return a fresh generator that depends on the seed and the purpose alone."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{purpose}".encode()))

    def sample(self, size: int, purpose: str, split: Split = "train") -> tuple[Tensor, Tensor]:
        """Return at most ``size`` rows drawn without replacement, on the device."""
        x, y = self.data[split]
        if size >= len(x):
            return x.to(self.device), y.to(self.device)
        rows = torch.randperm(len(x), generator=self.generator(purpose))[:size].sort().values
        return x[rows].to(self.device), y[rows].to(self.device)

    @property
    def batch_size(self) -> int:
        """Rows a forward pass takes so that one layer's output stays near 32 MiB."""
        sizes = [n.shape for n in self.graph.nodes if n.shape] if self.graph.traced else [tuple(self.x.shape)]
        widest = max((int(np.prod(s[1:])) for s in sizes if len(s) > 1), default=1)
        return int(min(1024, max(1, (32 << 20) // (4 * max(widest, 1)))))

    def batches(self, split: Split = "train", size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the split in order, on the device."""
        x, y = self.data[split]
        size = size or self.batch_size
        for start in range(0, len(x), size):
            yield x[start : start + size].to(self.device), y[start : start + size].to(self.device)

    def logits(self, split: Split = "train") -> Tensor:
        """Return the model's outputs on a split, shape (n, k), computed once.

        Raises
        ------
        NotApplicable
            If an output is not finite: no theorem on the outputs then has a number to speak of.
        InputError
            If the forward raises on some batch.
        """
        from theodolite.theorems import validation

        def compute() -> Tensor:
            output = torch.cat([validation.run_forward(self.model, x).cpu() for x, _ in self.batches(split)])
            broken = (~torch.isfinite(output)).flatten(1).any(1).nonzero().flatten()
            if len(broken):
                where = (
                    f"{len(broken):,} of {len(output):,} {split} samples, first on sample {int(broken[0])}"
                )
                raise NotApplicable(f"the model's outputs are NaN or infinite on {where}")
            return output

        return self.once(f"logits/{split}", compute)

    def per_sample_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row, shape (n,).

        Cross-entropy is in nats; "mse" is the squared error averaged over the outputs.
        A callable loss is evaluated row by row.
        """
        if self.loss_name == "cross_entropy":
            return F.cross_entropy(output, target, reduction="none")
        if self.loss_name == "mse":
            return F.mse_loss(output, target, reduction="none").flatten(1).mean(1)
        rows = range(len(output))
        return torch.stack([self.loss(output[i : i + 1], target[i : i + 1]).reshape(()) for i in rows])

    def errors(self, split: Split) -> Tensor:
        """Return whether each row is misclassified, shape (n,), bool; a tie counts as an error."""
        logits, y = self.logits(split), self.data[split][1]
        return ~(margins(logits, y) > 0)

    def expect(self, reducers: Iterable[type[Reducer]]) -> None:
        """Announce reducers, so that one pass over the data can serve them all."""
        self._expected.extend(r for r in reducers if r not in self._expected)

    def reduced(self, kind: type[R]) -> R:
        """Return a reducer that has seen every training batch."""
        if kind not in self._reduced:
            self.expect([kind])
            pending = [r(self) for r in self._expected if r not in self._reduced]
            self._stream(pending)
            self._reduced.update((type(r), r) for r in pending)
        result = self._reduced[kind]
        assert isinstance(result, kind)
        return result

    def _stream(self, reducers: list[Reducer]) -> None:
        def observe(node: Node, value: Any) -> None:
            for reducer in reducers:
                if isinstance(value, Tensor) and reducer.wants(node):
                    reducer.update(node, value.detach())

        with torch.no_grad():
            if self.graph.traced:
                for x, _ in self.batches():
                    self.graph.run(x, observe=observe)
            else:
                with _observed_modules(self.model, observe):
                    for x, _ in self.batches():
                        self.model(x)

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Keep the global random states of torch, numpy and Python as they are."""
        states = random.getstate(), np.random.get_state()  # noqa: NPY002  (a forward may draw from it)
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            try:
                yield
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])  # noqa: NPY002


@contextlib.contextmanager
def _observed_modules(model: nn.Module, observe: Callable[[Node, Any], None]) -> Iterator[None]:
    """Report leaf modules as if they were graph nodes, for models that cannot be traced."""
    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            node = Node(name, type(module).__name__.lower(), layer=name, layer_type=type(module).__name__)
            handles.append(module.register_forward_hook(lambda m, i, o, node=node: observe(node, o)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Return f_y - max_{j != y} f_j for each row, shape (n,); +inf with a single class."""
    if logits.shape[1] == 1:
        return torch.full((len(logits),), torch.inf, dtype=logits.dtype)
    true = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return true - others


def deep_copy(model: nn.Module) -> nn.Module:
    """Return an independent copy of a module.

    Raises
    ------
    InputError
        If the module cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise InputError(
            f"model: expected a module that copy.deepcopy can copy, but it raised: {error}"
        ) from error
