"""OPT006: how far a two-layer network is from the optimum of its family, of any width."""

from __future__ import annotations

import time

from theodolite.estimators.trained_network import network_gap
from theodolite.theorems.base import Finding, Hypothesis, Theorem
from theodolite.theorems.hypotheses import KNOWN_DUAL, WEIGHT_DECAY
from theodolite.theorems.network_problem import NetworkInputs, check_family, network_problem
from theodolite.theorems.subject import Subject
from theodolite.value import Value, format_number

_SECONDS = 10.0
TOLERANCE = 1e-3

TWO_LAYERS = Hypothesis(
    "two-layer network",
    "the network is a trained linear layer, the identity, ReLU or fixed gates, and a trained linear layer; "
    "a trained convolution, ReLU, average pooling and a trained linear layer; or a chain of trained linear layers",
    check_family,
)
COUPLED = Hypothesis(
    "coupled weight decay",
    "the weight decay was part of the objective, w/2 ||all trained parameters||^2, as in torch.optim.SGD "
    "and Adam (AdamW decouples it)",
)


class NetworkCertificate(Theorem):
    """Weak duality for a whole network: what any network of its family, of any width, could still gain.

    Parameters
    ----------
    seconds : float
        For the polar and setting it up, of which at least half goes to the polar.
    keep : bool
        Whether an interrupt while the polar is bounded leaves the cheapest bound, and sets ``interrupted``,
        instead of stopping the audit.
    """

    code = "OPT006"
    title = "Network certificate"
    chapter = "optimality"
    statement = (
        r"A two-layer network $\sum_iu_i\sigma(w_i\cdot x)+c$ with decay $w$ has an objective "
        r"$P\ge\ell(Z)+w\sum_i\|w_i\|\|u_i\|+\frac w2\|c\|^2$, and for every $Q$ whose polar "
        r"$\Omega^\circ(Q)=\max_{\|v\|=1}\|Q^\top\sigma(Xv)\|$ is at most $w$, "
        r"$P\ge D(Q)=-\ell^*(-Q)-\frac1{2w}\|\mathbf 1^\top Q\|^2$ whatever the width (the last term where there "
        r"is an output bias). For a chain of $L>2$ linear layers $w$ becomes the slope of a chord of the "
        r"concave $\frac{wL}2\theta^{2/L}$. So $(P-D)/P$ bounds what any such network can gain."
    )
    reference = "haeffele2015global"
    cost = "slow"
    hypotheses = (WEIGHT_DECAY, TWO_LAYERS, KNOWN_DUAL, COUPLED)
    reducers = (NetworkInputs,)
    sensitive = frozenset({"rescaling", "dead units"})

    def __init__(self, seconds: float = _SECONDS, keep: bool = False) -> None:
        self.seconds, self.keep = seconds, keep
        self.interrupted = False

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the gap of the network, the bound below it and the polar's bracket."""
        began = time.monotonic()
        network = network_problem(subject)
        now = time.monotonic()
        seconds = max(self.seconds - (now - began), 0.5 * self.seconds)
        if subject.deadline is not None:
            seconds = min(seconds, max(0.0, subject.deadline - now))
        seed = int(subject.generator(f"{self.code}/polar").initial_seed())
        try:
            certificate = network.problem.certify(network.params, tol=TOLERANCE, budget=seconds, seed=seed)
        except KeyboardInterrupt:
            if not self.keep:
                raise
            self.interrupted = True
            certificate = network.problem.certify(network.params, tol=TOLERANCE, budget=0.0, seed=seed)
        objective, decay = network.objective, network.problem.lam
        proved = network_gap(network, certificate)
        sure = certificate.confidence
        slope = (
            "the decay: above 1 a further unit helps, at an optimum it is 1"
            if network.depth == 2
            else "the slope of a chord of the decay, which is concave in the product of the norms"
        )
        whole = (
            f"mean loss + decay/2 ||all trained parameters||^2, all {subject.n:,} training samples, "
            "in evaluation mode"
        )
        return {
            "gap": Value.bound(
                proved.lower,
                proved.upper,
                confidence=sure,
                witness={
                    "family": network.family,
                    "depth": network.depth,
                    "verdict": verdict(proved.lower, proved.upper),
                    "balancing": proved.balancing,
                    "one more unit": proved.one_more_unit,
                },
                note="relative to the training objective: what a network of this family, of any width, can take "
                "off it; the lower end by balancing the norms of each unit's two layers, the best output bias "
                "and one more unit",
            ),
            "objective": Value.exact(objective, note=whole),
            "dual_bound": Value.bound(
                lower=proved.dual_bound,
                confidence=sure,
                note="no network of this family, of any width, has a smaller training objective; float64 "
                "rounding enclosed",
            ),
            "polar_ratio": Value.bound(
                max(certificate.polar.low, 0.0) / decay,
                certificate.polar.high / decay,
                confidence=sure,
                note=f"polar of the residual over {slope}: " + certificate.polar.note,
            ),
            "width": Value.exact(
                network.width,
                note="hidden units"
                if network.depth == 2
                else f"hidden units of the narrowest of {network.depth - 1} hidden layers",
            ),
        }

    def advice(self, finding: Finding) -> str:
        """Say what the verdict means."""
        gap = finding.values.get("gap")
        if gap is None:
            return ""
        low, high = format_number(100 * gap.low, "down"), format_number(100 * gap.high, "up")
        steps = [
            step
            for step, key in (
                ("balancing the two layers of each unit", "balancing"),
                ("adding a hidden unit", "one more unit"),
            )
            if gap.witness[key] > 0.0
        ]
        outcome = gap.witness["verdict"]
        if outcome == "closed":
            return (
                f"Leave the width and the optimizer alone: no network of this family, of any width, has an "
                f"objective more than {high} % lower."
            )
        if outcome == "improvable":
            return (
                f"Go on with {' and '.join(steps)}: the training objective falls by at least {low} %, and by no "
                f"more than {high} % in any network of this family."
            )
        return (
            f"Undecided: nothing better was found, and no more than {high} % is proved to be there; "
            "more time may narrow the polar's bracket."
        )


def verdict(lower: float, upper: float) -> str:
    """Return "closed", "improvable" or "undecided" for the ends of a relative gap."""
    return "closed" if upper <= TOLERANCE else "improvable" if lower > 0.0 else "undecided"
