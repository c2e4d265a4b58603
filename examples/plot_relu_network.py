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
# The fit, and how the gap closed
# -------------------------------
# The incumbent and the bound approach each other: what lies between them is all that any network of
# this family could still gain.
grid = torch.linspace(-1.1, 1.1, 400, dtype=torch.float64)[:, None]
history = solution.history

figure, (one, two) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
one.plot(x, y, ".", color="gray", label="data")
one.plot(grid, atom.phi(solution.params, grid), label=f"fit, {solution.certificate.units} units")
one.set(xlabel="x", ylabel="y")
one.legend()
rounds = [step.iteration for step in history]
two.plot(rounds, [step.objective for step in history], "o-", label="incumbent $P$")
two.plot(rounds, [step.dual_bound for step in history], "o-", label="bound $D$")
two.set(xlabel="round", ylabel="training objective", title=f"gap {100 * solution.certificate.gap:.2g} %")
two.legend()
plt.show()
