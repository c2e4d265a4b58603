"""Gradient and Hessian of a training objective on fixed data, as products with vectors.

A :class:`TrainingObjective` is the mean loss plus ``w/2 ||parameters||^2`` as a function
of all parameters laid end to end.  Its Hessian is never formed: one product costs about
one gradient on a retained graph, a few in streaming mode, which holds one batch at a time.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

LossFunction = Callable[[Tensor, Tensor], Tensor]


class NotDifferentiable(RuntimeError):  # noqa: N818  (a property of the model, not a mishap)
    """Raised when autograd offers no first or second derivative; the text is the true cause."""


@dataclass(frozen=True, slots=True)
class SampleCost:
    """What one sample costs.

    Attributes
    ----------
    flops : float
        Multiplications and additions of one forward pass, in matrix products and convolutions.
    elements : float
        Numbers that the graph of the gradient keeps for a second differentiation.
    """

    flops: float
    elements: float

    @property
    def work(self) -> float:
        """Flops of a forward pass, memory traffic included at 50 flops a number kept."""
        return self.flops + 50.0 * self.elements


class TrainingObjective:
    """Mean loss + w/2 ||parameters||^2 as a function of the flat parameter vector.

    Parameters
    ----------
    model : nn.Module
        It is copied; its mode is kept.
    x, y : Tensor, shape (n, ...) and (n,) or (n, k)
        The data, fixed.
    loss : function(output, target) -> mean over the batch
        Twice differentiable almost everywhere in its first argument.
    weight_decay : float
        The coefficient w.
    parameters : sequence of str, optional
        Names of the parameters that count; the others are constants.  All by default.
    dtype : torch.dtype, optional
        Floating-point type of the copy; the model's own by default.
    batch_size : int, optional
        Rows that one pass takes; all by default.

    Notes
    -----
    Where the model is piecewise linear (ReLU, max-pooling) the derivatives are those of
    the piece that autograd takes at the given parameters: the objective's own wherever
    no unit sits exactly on its kink.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        loss: LossFunction,
        *,
        weight_decay: float = 0.0,
        parameters: Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = copy.deepcopy(model)
        if dtype is not None:
            self.model.to(dtype)
            x = x.to(dtype) if x.is_floating_point() else x
            y = y.to(dtype) if y.is_floating_point() else y
        self.x, self.y, self.loss, self.weight_decay = x, y, loss, weight_decay
        self.batch_size = batch_size or len(x)
        named = dict(self.model.named_parameters())
        self.parameters = named if parameters is None else {name: named[name] for name in parameters}
        for name, parameter in named.items():
            parameter.requires_grad_(name in self.parameters)
        for module in self.model.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                module.sparse = False  # the same numbers, in a layout that can be differentiated again
        self._graphs: list[tuple[Tensor, ...]] | None = None

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters.values())

    @property
    def point(self) -> Tensor:
        """The parameters, shape (size,), in their own dtype."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a flat vector as views by parameter, each in its parameter's shape."""
        sizes = [p.numel() for p in self.parameters.values()]
        parts = vector.split(sizes)
        return {name: part.view_as(p) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}

    def value(self, shift: Tensor | None = None) -> float:
        """Return the objective, at the parameters plus ``shift`` (size,) if one is given."""
        total = 0.0
        # with gradients enabled, so that the function is the one that is differentiated, kernel by kernel
        with _differentiable(), self._shifted(shift):
            for x, y in self._batches():
                total += float(self.loss(self.model(x), y).detach()) * len(x) / len(self.x)
            squares = sum(float(p.detach().double().square().sum()) for p in self.parameters.values())
        return total + 0.5 * self.weight_decay * squares

    def gradient(self, shift: Tensor | None = None) -> Tensor:
        """Return the gradient, shape (size,), float64; at the parameters plus ``shift`` (size,) if given."""
        with self._shifted(shift):
            return self.loss_gradient() + self.weight_decay * self.point.double()

    def loss_gradient(self, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return the gradient of the mean loss alone, shape (size,), summed in float64.

        Parameters
        ----------
        progress : function(done, total), optional
            Called after each batch with numbers of samples.

        Raises
        ------
        NotDifferentiable
            If autograd sees no dependence of the loss on the parameters, or the gradient is not finite.
        """
        total = torch.zeros(self.size, dtype=torch.float64, device=self.x.device)
        done = 0
        with _differentiable():
            for x, y in self._batches():
                loss = self._loss(x, y) * (len(x) / len(self.x))
                grads = torch.autograd.grad(loss, list(self.parameters.values()), materialize_grads=True)
                total += torch.cat([g.reshape(-1) for g in grads])
                done += len(x)
                if progress is not None:
                    progress(done, len(self.x))
        return _finite(total, "the gradient of the loss")

    def retain(self) -> None:
        """Keep the gradient's graph of all the data, so that a product costs about one gradient."""
        with _differentiable():
            self._graphs = [self._gradient_graph(x, y) for x, y in self._batches()]

    def release(self) -> None:
        """Give the retained graph's memory back."""
        self._graphs = None

    def product(self, vector: Tensor) -> Tensor:
        """Return the Hessian times a vector, shape (size,), in the vector's dtype.

        Raises
        ------
        NotDifferentiable
            If the model contains an operation without a second derivative in autograd, or one
            that is not finite.
        """
        return self.products(vector[None])[0]

    def products(self, vectors: Tensor) -> Tensor:
        """Return the Hessian times each row, shape (r, size); one pass over the data for all rows."""
        result = self.weight_decay * vectors
        with _differentiable():
            if self._graphs is not None:
                for graph in self._graphs:
                    self._accumulate(graph, vectors, result)
            else:
                for x, y in self._batches():
                    self._accumulate(self._gradient_graph(x, y), vectors, result)
        return _finite(result, "the second derivative of the loss")

    def _accumulate(self, graph: tuple[Tensor, ...], vectors: Tensor, result: Tensor) -> None:
        parameters = list(self.parameters.values())
        moving = [i for i, g in enumerate(graph) if g.requires_grad]
        if not moving:  # the loss is linear in the parameters
            return
        for row, vector in enumerate(vectors):
            parts = [part.to(p) for part, p in zip(self.split(vector).values(), parameters, strict=True)]
            try:
                columns = torch.autograd.grad(
                    [graph[i] for i in moving],
                    parameters,
                    grad_outputs=[parts[i] for i in moving],
                    retain_graph=True,
                    materialize_grads=True,
                )
            except (RuntimeError, NotImplementedError) as error:
                raise NotDifferentiable(_first_line(error)) from error
            result[row] += torch.cat([c.reshape(-1) for c in columns]).to(result)

    def _gradient_graph(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        loss = self._loss(x, y) * (len(x) / len(self.x))
        parameters = list(self.parameters.values())
        try:
            return torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        except (RuntimeError, NotImplementedError) as error:
            raise NotDifferentiable(_first_line(error)) from error

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.loss(self.model(x), y)
        if not loss.requires_grad:
            raise NotDifferentiable(
                "the loss does not depend on the parameters in a way that autograd can see"
            )
        return loss

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.x), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.x[rows], self.y[rows]

    @contextlib.contextmanager
    def _shifted(self, shift: Tensor | None) -> Iterator[None]:
        if shift is None:
            yield
            return
        kept = [p.data for p in self.parameters.values()]
        try:
            # other tensors in place of these, which a retained graph may still need
            for p, part in zip(self.parameters.values(), self.split(shift).values(), strict=True):
                p.data = p.data + part.to(p)
            yield
        finally:
            for p, old in zip(self.parameters.values(), kept, strict=True):
                p.data = old


@contextlib.contextmanager
def _differentiable() -> Iterator[None]:
    """Use the attention kernel that autograd can differentiate twice; the fused ones cannot."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def sample_cost(objective: TrainingObjective) -> SampleCost:
    """Measure what one sample costs, with the same answer on every machine.

    Raises
    ------
    NotDifferentiable
        As :meth:`TrainingObjective.loss_gradient`.
    """
    one, two = (_kept_numbers(objective, rows) for rows in (1, 2))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        objective.model(objective.x[:1])
    return SampleCost(float(counter.get_total_flops()), float(max(0, two - one)))


def _kept_numbers(objective: TrainingObjective, rows: int) -> int:
    """Return how many numbers the graph of the first rows' gradient keeps."""
    x = objective.x[:1].repeat_interleave(rows, 0)
    y = objective.y[:1].repeat_interleave(rows, 0)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with _differentiable(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = objective._gradient_graph(x, y)
        count = sum(kept.values())
        del graph  # held until here, so that no storage was used twice
        return count


def _finite(result: Tensor, what: str) -> Tensor:
    if not bool(torch.isfinite(result).all()):
        raise NotDifferentiable(f"{what} is not finite at these weights")
    return result


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
