r"""
Low-rank denoising, with a certificate
======================================

The simplest certified fit: squared loss and rank-one terms :math:`uv^\top` with the penalty
:math:`\|u\|_2\|v\|_2`, whose sum is the nuclear norm.  The optimum is known in closed form, singular-value
thresholding, so that the certificate can be checked.
"""

# %%
# A noisy matrix of rank 3, and the problem
# -----------------------------------------
import matplotlib.pyplot as plt
import torch

import theodolite as td

generator = torch.Generator().manual_seed(0)
n, m, rank = 60, 40, 3
left, right = (torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in (n, m))
Y = left @ right.T + torch.randn(n, m, generator=generator, dtype=torch.float64)

lam = 15.0
problem = td.Problem(td.losses.SquaredLoss(Y), td.atoms.MatrixAtom(Y.shape), lam)

# %%
# Solve it
# --------
# One line a round: the incumbent, the bound that no matrix of any rank is below, and the gap.
solution = problem.solve(tol=1e-8, verbose=True)
print(solution.certificate)

# %%
# The closed form agrees
# ----------------------
# The singular values of the solution are those of the data, less lambda.  The distance to the
# optimum is at most what the gap says: half its square is below P - D.
U, s, V = torch.linalg.svd(Y, full_matrices=False)
optimum = U @ torch.diag((s - lam).clamp(min=0)) @ V
Z = problem.predictions(solution.params)
certificate = solution.certificate
distance = float((Z - optimum).square().sum()) / 2
print(f"1/2 |Z - Z*|^2 = {distance:.2g} <= P - D = {certificate.objective - certificate.dual_bound:.2g}")
assert distance <= certificate.objective - certificate.dual_bound

# %%
# A path of lambdas
# -----------------
# From ``problem.lambda_max()`` on, the zero matrix is optimal.
top = problem.lambda_max().upper
lambdas = [top * 10 ** (-i / 8) for i in range(1, 13)]
fits = [td.Problem(problem.loss, problem.atom, lam).solve(tol=1e-6) for lam in lambdas]
ranks = [fit.certificate.units for fit in fits]

figure, (one, two) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
one.plot(s, "o", fillstyle="none", label="data")
one.plot(torch.linalg.svdvals(Z), ".", label=r"fit, $\lambda = 15$")
one.axhline(lam, color="gray", linewidth=0.8, linestyle="--")
one.set(xlabel="index", ylabel="singular value", title="Thresholding")
one.legend()
two.plot(lambdas, ranks, "o-")
two.axhline(rank, color="gray", linewidth=0.8, linestyle="--")
two.set(xlabel=r"$\lambda$", ylabel="number of rank-one terms", title="Certified fits, gap below 1e-6")
plt.show()
