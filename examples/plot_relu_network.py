r"""
A ReLU network that is proved to be optimal
===========================================

Training a two-layer ReLU network is not convex, and yet its distance from the global optimum can be
bounded: here to 0.1 %, for *every* number of hidden units.  With inputs of one dimension and a bias the
activation patterns can be enumerated, so that the polar is exact.
"""

# %%
# Data on a line, and the problem
# -------------------------------
import matplotlib.pyplot as plt
import torch

import theodolite as td
from theodolite.core.descend import descend

generator = torch.Generator().manual_seed(0)
x = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
truth = torch.sin(4 * x) * (x + 1.2)
y = truth + 0.15 * torch.randn(x.shape, generator=generator, dtype=torch.float64)

atom = td.atoms.ReLUAtom(x, n_outputs=1, bias=True)
problem = td.Problem(td.losses.SquaredLoss(y), atom, lam=0.1)

# %%
# Solve it
# --------
solution = problem.solve(tol=1e-3, verbose=True)
print(solution.certificate)

# %%
# The fit, and what descent alone finds
# -------------------------------------
# Descent at a fixed width stops at local minima.  The certificate tells how good each of them is:
# on the right, how far they lie above the proved bound.
bound = solution.certificate.dual_bound
widths = (2, 4, 8, 16, 32)
excess = []
for r in widths:
    starts = [atom.init(r, seed) for seed in range(8)]
    ends = [descend(problem, W, tol=1e-6, deadline=float("inf"), progress=lambda _: None) for W in starts]
    excess.append([problem.objective(W) / bound - 1 for W in ends])

grid = torch.linspace(-1.1, 1.1, 400, dtype=torch.float64)[:, None]
figure, (one, two) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
one.plot(x, y, ".", color="gray", label="data")
one.plot(grid, atom.phi(solution.params, grid), label=f"fit, {solution.certificate.units} units")
one.set(xlabel="x", ylabel="y", title=f"gap {100 * solution.certificate.gap:.2g} %")
one.legend()
two.plot(widths, excess, "_", color="C0", markersize=12)
two.set(xscale="log", yscale="log", xlabel="units", ylabel="objective above the bound, relative")
two.set(title="8 random starts each")
two.set_xticks(widths, widths)
two.minorticks_off()
plt.show()
