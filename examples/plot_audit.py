"""
Audit a small network
=====================

A ReLU network trained on scikit-learn's digits, and what the theorems say about it.
"""

# %%
# Train, then audit
# -----------------
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import theodolite as td

X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
train, test = (X[:1400], y[:1400]), (X[1400:], y[1400:])

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 48, bias=False), nn.ReLU(), nn.Linear(48, 10, bias=False))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(200):
    optimizer.zero_grad()
    decay = sum(p.square().sum() for p in model.parameters())
    (nn.functional.cross_entropy(model(train[0]), train[1]) + 5e-4 * decay).backward()
    optimizer.step()
model.eval()

report = td.audit(model, {"train": train, "test": test}, weight_decay=1e-3, remedies=False)
print(report)

# %%
# What is proved about the margins
# --------------------------------
# The values of a finding are in ``report[CODE].values``.  The radius is the median distance to the
# nearest misclassified input: its lower end is proved, its upper end was found by an attack.
for name, value in report["GEN006"].values.items():
    print(f"{name:28} {value}")

# %%
# Two-sided bounds
# ----------------
# What lies between the two ends is not known.  The chart on the left is the one of the HTML report.
chart = report["GEN006"].chart
bounds = {
    f"{code} {name}": value
    for code in ("GEN004", "GEN005", "GEN006", "OPT004")
    for name, value in report[code].values.items()
    if value.kind == "bound" and value.lower and value.upper
}
figure, (one, two) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
one.hist(chart.series["margin"], bins=40)
one.set(xlabel=chart.x_label, ylabel="samples", title=chart.title)
for row, value in enumerate(bounds.values()):
    two.plot([value.lower, value.upper], [row, row], "|-", color="C0")
two.set_yticks(range(len(bounds)), bounds)
two.set(xscale="log", title="proved lower and upper ends")
plt.show()
