"""A made-up report that has every status, every kind of number and awkward texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from theodolite.auditing.remedies import Attempt
from theodolite.auditing.report import Report
from theodolite.theorems.base import Chart, CheckedHypothesis, Finding, by_number, by_structure, by_word
from theodolite.value import Value

EVIL = "<script>alert('x')</script> & \"quoted\""
LONG = "encoder.blocks." + "very_long_name." * 8 + "weight"


def finding(code: str = "OPT001", status: str = "certified", **options) -> Finding:  # type: ignore[no-untyped-def]
    texts = {"title": "A title", "chapter": "optimality", "statement": "$x^2 \\le 1$", "reference": "none"}
    return Finding(**{"code": code, "status": status, **texts, **options})


def checked(name: str, verdict, about: bool = False) -> CheckedHypothesis:  # type: ignore[no-untyped-def]
    return CheckedHypothesis(name, f"that {name} holds", verdict, about)


def findings(layers: int = 40) -> list[Finding]:
    """One of each status."""
    proved = checked("structure", by_structure(True, reason="it is so"))
    tested = checked("numbers", by_number(0.0, 1.0, witness=torch.tensor(0.5)))
    assumed = checked("i.i.d. test data", by_word("the data are independent draws"))
    false = checked(
        "degrees", by_structure(False, witness={"layer": LONG, "x": 2.0}, reason="they differ"), True
    )
    many = {f"norm[{LONG}.{i}]": Value.bound(i, i + 0.12345) for i in range(layers)}
    bars = Chart("bars", {"norm": [float(i) for i in range(layers)]}, [f"layer{i}" for i in range(layers)])
    return [
        finding(
            "OPT001",
            values={"degree": Value.exact(3.0), **many},
            hypotheses=(proved,),
            chart=bars,
            advice="train longer",
        ),
        finding("OPT002", "refuted", hypotheses=(proved, false), reason="they differ", title=EVIL),
        finding(
            "STA001",
            "conditional",
            chapter="stability",
            values={"a_" + LONG.replace(".", "_"): Value.bound(upper=1e9, confidence=1 - 1e-9, note=EVIL)},
            hypotheses=(proved, tested),
        ),
        finding(
            "GEN001",
            "conditional",
            chapter="generalization",
            values={"error_upper": Value.bound(upper=0.25, confidence=0.95, note="9 of 90")},
            hypotheses=(assumed,),
        ),
        finding(
            "GEN002",
            "estimated",
            chapter="generalization",
            values={"gap": Value.estimate(0.1, -0.2, 0.3, unit="nats", note="Größe ≤ ∞")},
            hypotheses=(assumed,),
            chart=Chart("histogram", {"margins": [1.0, 2.0, float("nan")]}, x_label=EVIL),
        ),
        finding("GEN003", "score", chapter="generalization", values={"rank": Value.score(float("inf"))}),
        finding("GEN004", "not applicable", chapter="generalization", reason="the model is empty"),
        finding(
            "INF001", "skipped", chapter="information", reason="the budget of 1 s was spent before it began"
        ),
        finding(
            "APP001", "failed", chapter="approximation", reason="ValueError: boo", traceback="Traceback: boo"
        ),
        finding("SPA001", chapter="sparsity", values={"limit": Value.absent(EVIL)}, hypotheses=(proved,)),
    ]


def report(found: Sequence[Finding] | None = None, **options) -> Report:  # type: ignore[no-untyped-def]
    model = {
        "name": "nets.py:net",
        "type": "MLP",
        "parameters": 12938,
        "trainable_parameters": 12938,
        "layers": 3,
        "dtype": "float32",
        "outputs": 10,
        "loss": "cross_entropy",
        "weight_decay": 1e-4,
        "traced": True,
    }
    data = {
        "name": "digits",
        "n_train": 1397,
        "n_test": 400,
        "shape": [1, 8, 8],
        "dtype": "float32",
        "task": "classification",
    }
    versions = dict.fromkeys(("python", "torch", "numpy", "scipy", "platform", "device"), "1.0")
    options.setdefault(
        "attempts", [Attempt("resolve-head", "Re-solve the head", reason="needs a weight decay > 0")]
    )
    return Report(
        findings=findings() if found is None else list(found),
        model={**model, **options.pop("model", {})},
        data={**data, **options.pop("data", {})},
        seed=0,
        environment={**versions, "threads": 2},
        **options,
    )
