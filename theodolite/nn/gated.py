r"""A linear layer behind fixed gates: the hidden layer of a gated ReLU network.

A ReLU unit is :math:`1[w\cdot x > 0]\,w\cdot x`.  With a fixed vector g in place of w in the
gate, :math:`1[g\cdot x > 0]\,w\cdot x` is linear in w, so that the global optimum of a
two-layer network of such units has a closed certificate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GatedLinear(nn.Module):
    r"""Linear units that fixed random half-spaces switch on and off, ``(x G^T + h > 0) * (x W^T + b)``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
        Whether the linear part has a trained bias b.
    gates : Tensor, shape (out_features, in_features), optional
        The normals G of the half-spaces; standard normal from ``seed`` when None.  They are a
        buffer: saved with the model, never trained.
    offsets : Tensor, shape (out_features,), optional
        The distances h of the half-spaces from the origin, a buffer too; none by default.
    seed : int
        Of the random gates.

    Raises
    ------
    ValueError
        If ``gates`` or ``offsets`` has another shape or is not finite.

    Examples
    --------
    >>> net = torch.nn.Sequential(GatedLinear(64, 32), torch.nn.Linear(32, 10, bias=False))
    """

    gates: Tensor
    offsets: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        gates: Tensor | None = None,
        offsets: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if gates is None:
            generator = torch.Generator().manual_seed(seed)
            gates = torch.randn(out_features, in_features, generator=generator)
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        for name, given, shape in (
            ("gates", gates, (out_features, in_features)),
            ("offsets", offsets, (out_features,)),
        ):
            if given is not None and (tuple(given.shape) != shape or not bool(torch.isfinite(given).all())):
                raise ValueError(
                    f"{name}: expected finite numbers of shape {shape}, got shape {tuple(given.shape)}"
                )
            kept = None if given is None else given.detach().to(self.linear.weight.dtype).clone()
            self.register_buffer(name, kept)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated units, shape (..., out_features)."""
        hidden: Tensor = self.linear(x)
        return (nn.functional.linear(x, self.gates, self.offsets) > 0).to(hidden.dtype) * hidden
