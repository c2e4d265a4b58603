"""Several copies of one architecture side by side, their outputs summed."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from theodolite.nn.regularizers import ProductOfNorms

# what every module has: parameters, buffers and children are compared apart, hooks must be empty
_OWN = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (int, float, str, bool, type(None), torch.dtype, types.FunctionType, types.BuiltinFunctionType)


class ParallelSubnetworks(nn.Module):
    """The sum of r subnetworks of one architecture, f(x) = sum_i phi(x; W_i).

    Such a network can grow and shrink: with a regularizer of the same degree as phi (see
    :class:`theodolite.nn.regularizers.ProductOfNorms`) its training has certificates of
    global optimality, and a subnetwork whose regularizer is zero can be taken out.

    Where all subnetworks have one structure and no buffers, they run as one vectorized
    call; otherwise (batch normalization, dropout while training, hooks, control flow that
    depends on the data, different structures) one after another, with the same results.
    Each sees the input as it came, also when another changes its own in place.

    Parameters
    ----------
    make : function() -> nn.Module
        Returns a new subnetwork at each call.
    r : int
        How many to begin with; 0 is the zero model.

    Attributes
    ----------
    subnetworks : nn.ModuleList

    Raises
    ------
    TypeError
        If ``make`` is not callable or returns no module.
    ValueError
        If ``r`` is negative, or ``make`` returns one module twice.

    Notes
    -----
    ``r`` is part of the ``state_dict``: loading one grows or shrinks the model, new subnetworks
    being made by ``make`` first.  An optimizer does not know parameters that come later; after a
    growth, add them: ``optimizer.add_param_group({"params": net.grow().parameters()})``.  After a
    prune or a load that changed r, build the optimizer anew, because it would go on to
    hold what was removed.

    Examples
    --------
    >>> def make():
    ...     return nn.Sequential(nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 10, bias=False))
    >>> net = ParallelSubnetworks(make, 4)
    >>> net(torch.zeros(2, 64)).shape
    torch.Size([2, 10])
    """

    _anchor: Tensor

    def __init__(self, make: Callable[[], nn.Module], r: int) -> None:
        super().__init__()
        if not callable(make):
            raise TypeError(f"make: expected a function that returns a module, got {type(make).__name__}")
        if isinstance(r, bool) or not isinstance(r, int):
            raise TypeError(f"r: expected a whole number >= 0, got {r!r}")
        if r < 0:
            raise ValueError(f"r: expected a whole number >= 0, got {r}")
        self.make = make
        self.subnetworks = nn.ModuleList()
        template = self._made() if r else self._template()
        floating = (p for p in (*template.parameters(), *template.buffers()) if p.is_floating_point())
        # it follows the model from device to device and dtype to dtype, also while there is no subnetwork
        self.register_buffer(
            "_anchor", next(floating, torch.empty(0)).detach().new_empty(0), persistent=False
        )
        if r:
            self.subnetworks.append(template)
        while len(self.subnetworks) < r:
            self.grow()

    @property
    def r(self) -> int:
        """Number of subnetworks."""
        return len(self.subnetworks)

    def __len__(self) -> int:
        return self.r

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.subnetworks)

    def __getitem__(self, index: int) -> nn.Module:
        return self.subnetworks[index]

    def extra_repr(self) -> str:
        """Return what the representation shows."""
        return f"r={self.r}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the subnetworks' outputs; zeros in the shape of such an output when r = 0.

        Raises
        ------
        ValueError
            If the subnetworks' outputs differ in shape.
        """
        if not self.r:
            with torch.no_grad():
                return torch.zeros_like(self._placed(self._template())(x.clone()))
        if self.r > 1 and self.one_structure():
            try:
                return self._vectorized(x)
            except (RuntimeError, ValueError, TypeError, NotImplementedError, UserWarning):
                # vmap refuses random numbers, some changes in place and control flow that looks at
                # values, and warns where it would loop itself; an error of the subnetworks themselves
                # comes again from the loop
                return self._looped(x)
        return self._looped(x)

    def _looped(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for index, subnetwork in enumerate(self.subnetworks):
            output = subnetwork(x.clone())
            if total is not None and output.shape != total.shape:
                raise ValueError(
                    f"subnetworks: expected outputs of one shape, got {tuple(total.shape)} from "
                    f"subnetwork 0 and {tuple(output.shape)} from subnetwork {index}"
                )
            total = output if total is None else total + output
        assert total is not None
        return total

    def _vectorized(self, x: Tensor) -> Tensor:
        """Run all subnetworks as one, their parameters stacked so that gradients reach each."""
        parameters = [dict(subnetwork.named_parameters()) for subnetwork in self.subnetworks]
        stacked = {name: torch.stack([p[name] for p in parameters]) for name in parameters[0]}
        first, given = self.subnetworks[0], x.clone()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "error", "There is a performance drop because we have not yet implemented"
            )
            outputs = vmap(lambda values: functional_call(first, values, (given,)), randomness="error")(
                stacked
            )
        return outputs.sum(0)

    def one_structure(self) -> bool:
        """Return whether the subnetworks differ in parameter values alone, and hold nothing else that changes."""
        first = list(self.subnetworks[0].named_modules())
        for subnetwork in self.subnetworks:
            others = list(subnetwork.named_modules())
            if len(others) != len(first) or not all(
                one[0] == two[0] and _alike(one[1], two[1]) for one, two in zip(first, others, strict=True)
            ):
                return False
        names = dict(self.subnetworks[0].named_parameters(remove_duplicate=False))
        return len(names) == len(set(map(id, names.values())))  # a tied parameter would be stacked twice

    def grow(self, module: nn.Module | None = None) -> nn.Module:
        """Add one subnetwork and return it.

        Parameters
        ----------
        module : nn.Module, optional
            The new subnetwork; ``make()`` when None.  It is moved to the device and dtype of the
            others.  A subnetwork with a zero last layer leaves the function as it is.

        Raises
        ------
        TypeError
            If it is no module.
        ValueError
            If it is one of the subnetworks already.
        """
        if module is None:
            module = self._made()
        elif not isinstance(module, nn.Module):
            raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
        elif any(module is other for other in self.subnetworks):
            raise ValueError("module: expected a new subnetwork, got one that is present already")
        self.subnetworks.append(self._placed(module))
        return module

    def prune(
        self, regularizer: Callable[[nn.Module], Tensor] | None = None, *, tolerance: float = 0.0
    ) -> list[int]:
        """Remove the subnetworks whose regularizer is zero, or nearly so.

        Parameters
        ----------
        regularizer : function(module) -> scalar Tensor, optional
            Regularizer of one subnetwork; a new :class:`ProductOfNorms` when None.  Where it
            vanishes only together with the subnetwork's output, as products of norms do, what
            is removed at ``tolerance=0`` leaves the function as it is, exactly.
        tolerance : float
            Remove also what is at most this share of the largest.

        Returns
        -------
        list of int
            The indices that were removed, in increasing order.

        Raises
        ------
        ValueError
            If ``tolerance`` is not in [0, 1) or a regularizer is negative or NaN.
        """
        if not 0.0 <= tolerance < 1.0:
            raise ValueError(f"tolerance: expected a number in [0, 1), got {tolerance}")
        measure = ProductOfNorms() if regularizer is None else regularizer
        with torch.no_grad():
            theta = [float(measure(subnetwork)) for subnetwork in self.subnetworks]
        wrong = next((i for i, value in enumerate(theta) if not value >= 0.0), None)
        if wrong is not None:
            raise ValueError(f"regularizer: expected a number >= 0, got {theta[wrong]} at subnetwork {wrong}")
        threshold = tolerance * max(theta, default=0.0)
        removed = [i for i, value in enumerate(theta) if value <= threshold]
        kept = [s for s, value in zip(self.subnetworks, theta, strict=True) if value > threshold]
        self._keep(kept)
        return removed

    def get_extra_state(self) -> Tensor:
        """Return r, which a ``state_dict`` holds."""
        return torch.tensor(self.r)

    def set_extra_state(self, state: Any) -> None:
        """Do nothing: r was set before the subnetworks were loaded."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # the children are loaded after their parent, so here is the place to have as many as there were
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None:
            while self.r < int(saved):
                self.grow()
            if self.r > int(saved):
                self._keep(list(self.subnetworks)[: int(saved)])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _keep(self, kept: list[nn.Module]) -> None:
        mode = self.subnetworks.training
        self.subnetworks = nn.ModuleList(kept)
        self.subnetworks.training = mode  # that of the list alone: each subnetwork keeps its own

    def _made(self) -> nn.Module:
        module = self.make()
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"make: expected a function that returns an nn.Module, got {type(module).__name__}"
            )
        mine = {id(p) for p in self.parameters()}
        if any(module is other for other in self.subnetworks) or any(
            id(p) in mine for p in module.parameters()
        ):
            raise ValueError("make: expected a new module at each call, got one whose parameters are present")
        return module

    def _template(self) -> nn.Module:
        """Return a subnetwork that is not kept, without any effect on random numbers to come."""
        with torch.random.fork_rng():
            return self._made()

    def _placed(self, module: nn.Module) -> nn.Module:
        return module.to(self._anchor.device, self._anchor.dtype).train(self.training)


def _alike(one: nn.Module, two: nn.Module) -> bool:
    """Whether two modules, their children apart, compute the same function of their parameters."""
    if type(one) is not type(two) or one._buffers or two._buffers or one.training != two.training:
        return False
    if any(getattr(module, hooks) for module in (one, two) for hooks in _HOOKS):
        return False
    if one._parameters.keys() != two._parameters.keys():
        return False
    for name, p in one._parameters.items():
        q = two._parameters[name]
        if p is None or q is None:
            if p is not q:
                return False
        elif (p.shape, p.dtype, p.device) != (q.shape, q.dtype, q.device):
            return False
    mine, yours = ({k: v for k, v in vars(m).items() if k not in _OWN} for m in (one, two))
    return mine.keys() == yours.keys() and all(_equal(mine[name], yours[name]) for name in mine)


def _equal(one: Any, two: Any) -> bool:
    """Whether two attributes are plain and equal; what cannot be compared is not."""
    if isinstance(one, (tuple, list)):
        return type(one) is type(two) and len(one) == len(two) and all(map(_equal, one, two))
    return isinstance(one, _PLAIN) and type(one) is type(two) and one == two
