"""Blur before positions are dropped, so that a shift by one pixel changes fewer labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from theodolite.analysis.anti_aliasing import aliasing, made_over, swapped
from theodolite.analysis.translation_action import Action, Shift, translation_action
from theodolite.remedies.base import Change, Remedy, rate_difference
from theodolite.theorems.base import NotApplicable
from theodolite.theorems.hypotheses import require_cost, require_graph
from theodolite.theorems.subject import Subject, deep_copy
from theodolite.value import Value

LEAST_ROWS, MOST_ROWS = 16, 512
# multiplications and additions of each stage, choosing, tuning and measuring: some 25 seconds on two cores
BUDGET = 5e11
STEPS, BATCH, RATE = 100, 64, 1e-3


class AntiAlias(Remedy):
    """Replace strided convolutions and pools by dense ones with a blur-pool behind them.

    Structure tells which layers drop positions, and the spectrum of what they would give at
    every position which of them aliases most; shifts by multiples of the strides, of which
    the audit's translation theorem speaks, do not see it.  That layer alone and all such
    layers are tried on the rows to fit: as they are, with batch norms estimated again, and
    after a short tuning of the weights.  The best there, in labels that flip and labels
    that are wrong, is measured on the other rows.
    """

    name = "anti-alias"
    title = "Blur before subsampling"
    needs = (
        "classes, inputs that translations act on, and a module that convolves or pools with a stride above 1"
    )

    def change(self, model: nn.Module, subject: Subject, fit: Tensor) -> Change:
        """Make layers over, best first on the rows to fit."""
        action = _action(subject)
        cost = require_cost(subject).total
        shifts = one_pixel(action)
        replaceable, refused = made_over(model, action, subject.x[:2].to(subject.device))
        if not replaceable:
            reasons = "; ".join(f"'{name}' stays: {why}" for name, why in refused.items())
            raise NotApplicable(reasons or "no layer drops positions, so that nothing is aliased")
        affordable = int(BUDGET / (cost * (1 + len(shifts)) * 4))
        if affordable < LEAST_ROWS:
            raise NotApplicable(
                f"a forward pass takes {cost:.2g} multiplications and additions, too many to try it"
            )
        order = torch.randperm(len(fit), generator=subject.generator("remedies/anti-alias"))
        rows = fit[order[: min(MOST_ROWS, affordable)]].sort().values
        shares = aliasing(model, replaceable, subject.x[rows[:64]].to(subject.device))
        worst = max(shares, key=lambda name: shares[name])
        if shares[worst] < 1e-6:
            raise NotApplicable("the layers that drop positions alias nothing on the training data")

        def score(candidate: nn.Module) -> float:
            wrong, flips = _wrong_and_flipped(subject, candidate, rows, action, shifts)
            return float(wrong.double().mean() + flips.double().mean())

        sets = [[worst]] if len(replaceable) == 1 else [[worst], list(replaceable)]
        candidates = [(swapped(model, {n: replaceable[n] for n in names}), names) for names in sets]
        scores = [score(candidate) for candidate, _ in candidates]
        best, (chosen, names) = min(zip(scores, candidates, strict=True), key=lambda pair: pair[0])
        how = "weights unchanged"
        stages: list[tuple[Callable[[nn.Module], bool], str]] = [
            (lambda m: _estimate_norms(m, subject, rows), "batch norms estimated again"),
            (lambda m: _tune(m, subject, fit, cost), "weights tuned"),
        ]
        for stage, what in stages:
            candidate = deep_copy(chosen)
            if stage(candidate) and (value := score(candidate)) < best:
                best, chosen, how = value, candidate, what
        listed = " and ".join(f"'{name}'" for name in names) if len(names) < 4 else f"{len(names)} layers"
        effects = {
            "aliasing": Value.exact(
                shares[worst],
                witness={"layer": worst, "all": shares},
                note=f"'{worst}': norm of the frequencies that its stride folds over, relative to all, on "
                f"{min(64, len(rows))} training samples",
            ),
            "layers_replaced": Value.exact(len(names), witness={"replaced": names, "stay": refused}),
        }
        return Change(chosen, f"blur before {listed} drop{'s' * (len(names) == 1)} positions, {how}", effects)

    def measure(self, subject: Subject, change: Change, rows: Tensor) -> dict[str, Value]:
        """Add the share of labels that flip under one-pixel shifts, before and after, on as many rows as are affordable."""
        action = _action(subject)
        shifts = one_pixel(action)
        affordable = int(BUDGET / (require_cost(subject).total * (1 + len(shifts)) * 2))
        order = torch.randperm(len(rows), generator=subject.generator("remedies/anti-alias/flips"))
        seen = rows[order[:affordable]].sort().values
        flips = [
            _wrong_and_flipped(subject, m, seen, action, shifts)[1] for m in (subject.model, change.model)
        ]
        where = f"{len(seen)} validation samples out of the training data"
        note = f"share of {where} whose label changes under one of {len(shifts)} cyclic shifts by one pixel"
        return {
            **super().measure(subject, change, rows),
            "flips_before": Value.exact(float(flips[0].double().mean()), note=note),
            "flips_after": Value.exact(float(flips[1].double().mean()), note=note),
            "flips_change": rate_difference(flips[0], flips[1], where),
        }

    def helped(self, change: Change, effects: Mapping[str, Value]) -> bool:
        """Return whether fewer labels flip, beyond the interval, and the error rises by less and within its own."""
        flips, error = effects["flips_change"], effects["error_change"]
        rise = error.value or 0.0
        return flips.high < 0 and error.low <= 0 and rise < -(flips.value or 0.0)

    def sentence(self, change: Change, effects: Mapping[str, Value]) -> str:
        """Say how many labels flip before and after, and the error."""
        before, after, difference = (effects[f"flips_{part}"] for part in ("before", "after", "change"))
        half = 50.0 * (difference.high - difference.low)
        what = (
            f"{change.description}: labels that flip under one-pixel shifts "
            f"{100 * before.low:.3g} -> {100 * after.low:.3g} % (change ±{half:.2g})"
        )
        return super().sentence(Change(change.model, what), effects)


def _action(subject: Subject) -> Action:
    if not subject.classification or subject.y.ndim != 1 or subject.n_outputs < 2:
        raise NotApplicable("flips of labels are counted, which needs classes")
    if not subject.real_input:
        raise NotApplicable("the inputs are whole numbers, which cannot be blurred")
    require_graph(subject)
    action = subject.once(
        "remedies/action",
        lambda: translation_action(subject.graph, subject.x[:2].to(subject.device), subject.image_shape),
    )
    if action is None or max(action.sizes) == 1:
        raise NotApplicable("no translation is known to act on the inputs")
    return action


def one_pixel(action: Action) -> list[Shift]:
    """Return the shifts by one pixel, to both sides along each axis that has several positions."""
    axes = range(len(action.sizes))
    sides = [(axis, side) for axis in axes if action.sizes[axis] > 1 for side in (1, -1)]
    return [tuple(side if a == axis else 0 for a in axes) for axis, side in sides]


def _wrong_and_flipped(
    subject: Subject, model: nn.Module, rows: Tensor, action: Action, shifts: Sequence[Shift]
) -> tuple[Tensor, Tensor]:
    """Return for each row whether its label is wrong, and whether some shift changes it; bool, on the CPU."""
    wrong, flipped = [], []
    with torch.no_grad():
        for part in rows.split(subject.batch_size):
            x = subject.x[part].to(subject.device)
            labels = model(x).argmax(1)
            changed = torch.stack([model(action.shift(x, by)).argmax(1) != labels for by in shifts])
            wrong.append(labels.cpu() != subject.y[part])
            flipped.append(changed.any(0).cpu())
    return torch.cat(wrong), torch.cat(flipped)


def _estimate_norms(model: nn.Module, subject: Subject, rows: Tensor) -> bool:
    """Take the running statistics of batch norms anew; return whether there are any."""
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    parts = [part for part in rows.split(BATCH) if len(part) > 1]
    with torch.no_grad():
        for part in parts if norms else []:
            model(subject.x[part].to(subject.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    return bool(norms)


def _tune(model: nn.Module, subject: Subject, fit: Tensor, cost: float) -> bool:
    """Descend on the training objective for a few steps, in evaluation mode; return whether it did."""
    trained = [p for p in model.parameters() if p.requires_grad]
    steps = min(STEPS, int(BUDGET / (3.0 * cost * BATCH)))
    late = subject.deadline is not None and time.monotonic() >= subject.deadline
    if not trained or steps < STEPS // 4 or late:
        return False
    generator = subject.generator("remedies/anti-alias/tune")
    optimizer = torch.optim.Adam(trained, lr=RATE)
    with torch.enable_grad():
        for _ in range(steps):
            part = fit[torch.randint(len(fit), (BATCH,), generator=generator)]
            loss = subject.loss(model(subject.x[part].to(subject.device)), subject.y[part].to(subject.device))
            if subject.weight_decay:
                loss = loss + subject.weight_decay / 2 * sum(p.square().sum() for p in trained)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    return True
