"""The deterministic penalty that each dropout layer adds to the training loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis.dropout import feature_regularizer, monte_carlo, softmax_score
from theodolite.analysis.dropout_layers import Dropped, Site, find_dropout, may_drop
from theodolite.analysis.graph import Node
from theodolite.theorems.base import Chart, Hypothesis, NotApplicable, Theorem, Verdict, by_structure
from theodolite.theorems.hypotheses import require_graph
from theodolite.theorems.subject import Subject
from theodolite.value import Value

DRAWS = 50  # of the estimate, each over its own samples and masks
ROWS = 256
TAYLOR = (
    "Taylor's second term, not a bound: for trained networks it can be under half of what sampled masks show"
)


def _dropped(subject: Subject) -> Dropped | str:
    """Return the subject's dropout layers, or why there are none to speak of."""

    def find() -> Dropped | str:
        if not may_drop(subject.model):
            return "the model has no dropout layer"
        with subject.preserved():
            return find_dropout(subject.model, subject.x[:2].to(subject.device))

    return subject.once("DRO001/layers", find)


def _has_dropout(subject: Subject) -> Verdict:
    require_graph(subject)
    found = _dropped(subject)
    if isinstance(found, str):
        if may_drop(subject.model):
            raise NotApplicable(found)
        return by_structure(False, reason=found)
    names = [site.name for site in found.sites]
    return by_structure(
        bool(names), witness=names, reason=f"{len(names)} dropout layers" if names else "no layer drops units"
    )


HAS_DROPOUT = Hypothesis("dropout layers", "the model drops units or weights while training", _has_dropout)


class EffectiveRegularizer(Theorem):
    """What each dropout layer adds to the expected training loss, as a deterministic penalty."""

    code = "DRO001"
    title = "Dropout's penalty"
    chapter = "dropout"
    statement = (
        r"Dropout of features $h_k$ at rate $p$ before linear layers $u_k$ adds "
        r"$\kappa\sum_k\|u_k\|^2\sum_n h_k(x_n)^2$, $\kappa = p/(1-p)$, to the expected squared error, exactly, and "
        r"$\frac\kappa2\sum_{n,k}h_k(x_n)^2\,u_k^\top\nabla^2\ell_n u_k$ to another loss up to higher order. Divided "
        r"by what the loss is averaged over. Below nonlinear layers it is estimated with sampled masks."
    )
    reference = "cavazza2018dropout, wager2013dropout"
    hypotheses = (HAS_DROPOUT,)
    # neither permutations nor dead units: where masks are sampled, those of the units move
    invariant = frozenset({"rescaling"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the largest penalty, its ratio to the loss without masks, and each layer's; beside scores samples."""
        found = _dropped(subject)
        assert isinstance(found, Dropped)
        sites = [site for site in found.sites if not site.reason]
        if not sites:
            raise NotApplicable("; ".join(site.reason for site in found.sites))
        total, sums = _closed_forms(subject, found, sites)
        values = {}
        for site in sites:
            values[site.name] = sums[site.name] if site.name in sums else _estimated(subject, found, site)
        largest = max(values, key=lambda name: float(values[name].value or 0.0))
        note = "added to the mean training loss by the masks of this layer alone"
        if len(sites) < len(found.sites):
            note += f"; not measured: {', '.join(s.name for s in found.sites if s.reason)}"
        # the largest of several estimates is within its interval only where all of them are in theirs
        estimates = sum(value.kind == "estimate" for value in values.values())
        head = _scaled(
            values[largest],
            1.0,
            note=f"{note}; {values[largest].note}".rstrip("; "),
            layer=largest,
            chosen=estimates,
        )
        mean = total / subject.n
        result = {"regularizer": head}
        if mean > 0.0:
            ratio_note = f"penalty over the mean loss without masks, {mean:.4g}"
            result["share_of_loss"] = _scaled(head, 1.0 / mean, note=ratio_note, layer=largest)
        result |= {f"regularizer[{name}]": value for name, value in values.items()}
        scored = [site for site in sites if values[site.name].kind == "score"]
        return result | {f"sampled[{site.name}]": _estimated(subject, found, site) for site in scored}

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return the penalties of the layers."""
        named = {k[12:-1]: v for k, v in values.items() if k.startswith("regularizer[")}
        numbers = [float(v.value or 0.0) for v in named.values()]
        return Chart("bars", {"penalty": numbers}, tuple(named), "layer", "penalty", "what dropout adds")


def _closed_forms(subject: Subject, found: Dropped, sites: list[Site]) -> tuple[float, dict[str, Value]]:
    """Return the summed loss without masks, and the closed forms of the layers that have one, over the mean."""
    closed = [s for s in sites if s.outgoing is not None and subject.loss_name in ("mse", "cross_entropy")]
    total, sums = 0.0, dict.fromkeys((s.name for s in closed), 0.0)
    nodes = {s.node.args[0] for s in closed}
    for x, y in subject.batches():
        seen: dict[Node, Tensor] = {}

        def observe(node: Node, value: Any, seen: dict[Node, Tensor] = seen) -> None:
            if node in nodes:
                seen[node] = value

        with torch.no_grad():
            output = found.run(x, observe)
        total += float(subject.per_sample_loss(output, y).double().sum())
        for site in closed:
            source = site.node.args[0]
            h = site.features(x if source.op == "input" else seen[source], found.graph)
            assert site.outgoing is not None
            if subject.loss_name == "mse":
                part = feature_regularizer(h, site.outgoing, site.p, block=site.block).value or 0.0
                sums[site.name] += part / subject.n_outputs
            else:
                probabilities = output.double().softmax(1).cpu()
                sums[site.name] += (
                    softmax_score(h, site.outgoing, probabilities, site.p, block=site.block).value or 0.0
                )
    values = {}
    for name, part in sums.items():
        if subject.loss_name == "mse":
            values[name] = Value.exact(part / subject.n)
        else:
            values[name] = Value.score(part / subject.n, note=TAYLOR)
    return total, values


def _estimated(subject: Subject, found: Dropped, site: Site) -> Value:
    """Return the mean increase of the loss by sampled masks, each draw on its own samples."""
    generator = subject.generator(f"DRO001/{site.name}")
    size = min(
        subject.n, ROWS if subject.loss_name in ("mse", "cross_entropy") else ROWS // 4, subject.batch_size
    )
    inputs, targets = subject.data["train"]

    def draw() -> float:
        rows = torch.randperm(subject.n, generator=generator)[:size]
        x, y = inputs[rows].to(subject.device), targets[rows].to(subject.device)
        run = found.run_with(x, site, generator)
        plain, masked = subject.per_sample_loss(run.plain, y), subject.per_sample_loss(run.outputs, y)
        difference = float((masked.double() - plain.detach().double()).mean())
        return difference - run.first_order(plain.mean())

    return monte_carlo(draw, DRAWS, confidence=0.99)


def _scaled(value: Value, factor: float, *, note: str, layer: str, chosen: int = 1) -> Value:
    """Return a value times a positive factor, with another note; an estimate chosen among so many."""
    witness, number = {"layer": layer}, float(value.value or 0.0) * factor
    if value.kind == "estimate":
        low, high = value.low * factor, value.high * factor
        sure = 1.0 - chosen * (1.0 - value.confidence)
        if sure <= 0.0:  # a union over so many says nothing
            return Value.score(number, witness=witness, note=note)
        return Value.estimate(number, low, high, confidence=sure, witness=witness, note=note)
    make = Value.exact if value.kind == "exact" else Value.score
    return make(number, witness=witness, note=note)
