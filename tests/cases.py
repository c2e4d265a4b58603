"""One line a hypothesis and one line a theorem: what the meta-tests run them on."""

from __future__ import annotations

from collections.abc import Callable

from builders import (
    bare_subject,
    constant_net,
    conv_net,
    dropout_net,
    mlp,
    regression_subject,
    squaring_net,
    subject,
    tokens_subject,
    with_zero_units,
)
from torch import nn

from theodolite.theorems.subject import Subject

Builder = Callable[[], Subject]

# name of the hypothesis -> (a subject that satisfies it, a subject that refutes it)
HYPOTHESES: dict[str, tuple[Builder, Builder]] = {
    "real input": (subject, tokens_subject),
    "classification": (subject, regression_subject),
    "test split": (subject, lambda: subject(test=False)),
    "weight decay > 0": (lambda: subject(weight_decay=1e-3), lambda: subject(weight_decay=0.0)),
    "has parameters": (subject, lambda: subject(nn.Sequential(nn.Identity()))),
    "piecewise linear": (lambda: subject(conv_net()), lambda: subject(nn.Sequential(mlp(), nn.Sigmoid()))),
    "positively homogeneous in the parameters": (subject, lambda: subject(mlp(bias=True))),
    "positive degree": (subject, lambda: subject(constant_net())),
    "parallel subnetworks": (lambda: subject(mlp(64, 16, 10)), subject),
    "degrees match": (
        lambda: subject(mlp(64, 16, 10), weight_decay=1e-3),
        lambda: subject(weight_decay=1e-3),
    ),
    "dropout layers": (lambda: subject(dropout_net()), subject),
    "homogeneous hidden units": (subject, lambda: subject(mlp(64, 10))),
    "linear last layer": (subject, lambda: subject(nn.Sequential(mlp(), nn.Softmax(1)))),
    "ReLU network": (subject, lambda: subject(nn.Sequential(mlp(), nn.Sigmoid()))),
    "globally Lipschitz layers": (subject, lambda: subject(squaring_net())),
    "has weight layers": (subject, bare_subject),
    "degree above 2": (subject, lambda: subject(mlp(64, 16, 10))),
    "degree 2": (lambda: subject(mlp(64, 16, 10)), subject),
    "two-layer network": (lambda: subject(mlp(64, 16, 10)), subject),
    "convex loss with a known dual": (subject, lambda: regression_subject(loss=nn.functional.huber_loss)),
}

# code of the theorem -> a subject on which it has something to say
THEOREMS: dict[str, Builder] = {
    "OPT001": subject,
    "OPT002": lambda: subject(mlp(64, 16, 10)),
    "OPT003": lambda: subject(mlp(64, 16, 10), weight_decay=1e-3),
    "DRO001": lambda: subject(dropout_net()),
    "DRO002": subject,
    "OPT005": lambda: subject(weight_decay=1e-3),
    "LAN001": lambda: subject(weight_decay=1e-3),
    "INF001": subject,
    "SPA001": subject,
    "SPA002": subject,
    "OPT004": lambda: subject(weight_decay=1e-3),
    "OPT006": lambda: subject(mlp(64, 16, 10), weight_decay=1e-3),
    "OPT007": lambda: subject(with_zero_units(16), weight_decay=10.0),
    "OPT008": lambda: subject(weight_decay=1e-3),
    "STA001": lambda: subject(conv_net()),
    "STA004": lambda: subject(conv_net()),
    "STA007": lambda: subject(conv_net()),
    "STA002": lambda: subject(conv_net()),
    "STA005": lambda: subject(conv_net()),
    "STA003": lambda: subject(conv_net()),
    "STA006": lambda: subject(conv_net()),
    "GEN001": subject,
    "GEN002": subject,
    "GEN003": subject,
    "GEN004": subject,
    "GEN005": subject,
    "GEN006": subject,
    "APP001": subject,
}
