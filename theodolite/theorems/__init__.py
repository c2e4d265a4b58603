"""Theorems and measurements, one a file, in folders by chapter; ``ALL`` is the list."""

from __future__ import annotations

from theodolite.theorems.approximation.regions import ActivationRegions
from theodolite.theorems.base import Theorem
from theodolite.theorems.dropout.balancedness import Balancedness
from theodolite.theorems.dropout.effective_regularizer import EffectiveRegularizer
from theodolite.theorems.generalization.gap import GeneralizationGap
from theodolite.theorems.generalization.held_out_bound import HeldOutBound
from theodolite.theorems.generalization.lipschitz import LipschitzBracket
from theodolite.theorems.generalization.margins import Margins
from theodolite.theorems.generalization.path_norm import PathNorm
from theodolite.theorems.generalization.product_norms import ProductNorms
from theodolite.theorems.information.cross_entropy import CrossEntropy
from theodolite.theorems.landscape.hessian_top import HessianTop
from theodolite.theorems.optimality.head_certificate import HeadCertificate
from theodolite.theorems.optimality.homogeneity import PositiveHomogeneity
from theodolite.theorems.optimality.minimum_at_zero import MinimumAtZero
from theodolite.theorems.optimality.network_certificate import NetworkCertificate
from theodolite.theorems.optimality.parallel_subnetworks import ParallelSubnetworks
from theodolite.theorems.optimality.regularizer_degree import RegularizerDegree
from theodolite.theorems.optimality.stationarity import Stationarity
from theodolite.theorems.optimality.zero_subnetwork import ZeroSubnetwork
from theodolite.theorems.sparsity.activation_sparsity import ActivationSparsity
from theodolite.theorems.sparsity.coherence import Coherence
from theodolite.theorems.stability.aliasing import AliasingByLayer
from theodolite.theorems.stability.deformation import DeformationSlope
from theodolite.theorems.stability.frame_bounds import FrameBoundsAndAdmissibility
from theodolite.theorems.stability.lie_derivative import LieDerivatives
from theodolite.theorems.stability.relative_stability import RelativeStability
from theodolite.theorems.stability.symmetry import SymmetryDefects
from theodolite.theorems.stability.translation import TranslationEquivariance

ALL: list[type[Theorem]] = [
    PositiveHomogeneity,
    ParallelSubnetworks,
    RegularizerDegree,
    HeadCertificate,
    Stationarity,
    NetworkCertificate,
    ZeroSubnetwork,
    MinimumAtZero,
    EffectiveRegularizer,
    Balancedness,
    TranslationEquivariance,
    DeformationSlope,
    FrameBoundsAndAdmissibility,
    LieDerivatives,
    RelativeStability,
    AliasingByLayer,
    SymmetryDefects,
    HeldOutBound,
    GeneralizationGap,
    PathNorm,
    ProductNorms,
    LipschitzBracket,
    Margins,
    CrossEntropy,
    ActivationRegions,
    Coherence,
    ActivationSparsity,
    HessianTop,
]

BY_CODE: dict[str, type[Theorem]] = {theorem.code: theorem for theorem in ALL}
