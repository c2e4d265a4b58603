r"""
Matrix completion: missing pixels, a certificate and a path
===========================================================

A table of which only some entries are known is filled in by the matrix that fits them and has a small nuclear norm.
The problem is convex, so that the fit can be proved to be optimal, and the regularization be chosen along a path of
certified fits.
"""

# %%
# Digits with half of their pixels missing
# ----------------------------------------
# Each row is an image of 8 x 8 pixels, written out.  NaN marks what is missing.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from theodolite.estimators import MatrixCompletion, MatrixCompletionCV, completion_path

rng = np.random.default_rng(0)
pixels = load_digits().data[:400]
missing = rng.random(pixels.shape) < 0.5
observed = np.where(missing, np.nan, pixels)

# %%
# One fit and its certificate
# ---------------------------
# Half the sum of squares over the observed pixels, plus alpha times the nuclear norm of the whole table.  No table
# has an objective below ``dual_bound_``, of whatever rank.
model = MatrixCompletion(alpha=30.0, tol=1e-4, verbose=True).fit(observed)
print(model.certificate_)
print(
    f"rank {model.rank_}: objective {model.objective_:.1f}, bound {model.dual_bound_:.1f}, gap {model.gap_:.1g}"
)

# %%
# A path of fits
# --------------
# From the largest alpha, beyond which the zero table is optimal, to a hundredth of it; each fit starts from the
# last one, and each has its certificate.
path = completion_path(observed, n_alphas=10, tol=1e-4)
errors = [np.sqrt(np.square((fit.complete() - pixels)[missing]).mean()) for fit in path]
for fit, error in zip(path, errors, strict=True):
    print(
        f"alpha {fit.alpha_:8.2f}  rank {fit.rank_:3d}  gap <= {fit.gap_:.1g}  error of missing pixels {error:.2f}"
    )

# %%
# The choice of alpha
# -------------------
# Cross-validation holds out observed pixels; those that are missing stay unseen until now.
best = MatrixCompletionCV(n_alphas=10, cv=3, tol=1e-3).fit(observed)
completed = best.complete()
error = np.sqrt(np.square((completed - pixels)[missing]).mean())
mean = np.sqrt(np.square((np.nanmean(observed, axis=0) - pixels)[missing]).mean())
print(f"alpha {best.alpha_:.2f}, rank {best.rank_}: error {error:.2f}, {mean:.2f} with each pixel's mean")

figure, axes = plt.subplots(3, 8, figsize=(9, 3.6), layout="constrained")
for column, row in enumerate(rng.choice(len(pixels), 8, replace=False)):
    for axis, image in zip(axes[:, column], (observed, completed, pixels), strict=True):
        axis.imshow(image[row].reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        axis.set(xticks=[], yticks=[])
for axis, label in zip(axes[:, 0], ("observed", "completed", "true"), strict=True):
    axis.set_ylabel(label)

figure, (one, two) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
alphas = [fit.alpha_ for fit in path]
one.semilogx(alphas, errors, "o-")
one.axvline(best.alpha_, color="gray", linewidth=0.8, linestyle="--")
one.set(xlabel=r"$\alpha$", ylabel="error of missing pixels", title="Dashed: chosen by cross-validation")
two.semilogx(alphas, [fit.rank_ for fit in path], "o-")
two.set(xlabel=r"$\alpha$", ylabel="rank", title="Certified fits, gap below 1e-4")
plt.show()
