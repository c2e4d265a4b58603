"""Models in scikit-learn's API that certify how far from optimal their fit can be, and scattering transforms."""

from theodolite.estimators.base import CertifiedEstimator
from theodolite.estimators.completion import MatrixCompletion
from theodolite.estimators.completion_cv import MatrixCompletionCV, completion_path
from theodolite.estimators.dropout import DropoutFactorization
from theodolite.estimators.factorization import LowRankFactorization, RobustPCA
from theodolite.estimators.parallel_net import ParallelNetClassifier, ParallelNetRegressor
from theodolite.estimators.scattering import (
    GraphScatteringTransformer,
    Scattering1DTransformer,
    Scattering2DTransformer,
    Scattering3DTransformer,
)
from theodolite.estimators.structured import FactorNorm, StructuredFactorization
from theodolite.estimators.tensor import TensorFactorization

__all__ = [
    "CertifiedEstimator",
    "DropoutFactorization",
    "FactorNorm",
    "GraphScatteringTransformer",
    "LowRankFactorization",
    "MatrixCompletion",
    "MatrixCompletionCV",
    "ParallelNetClassifier",
    "ParallelNetRegressor",
    "RobustPCA",
    "Scattering1DTransformer",
    "Scattering2DTransformer",
    "Scattering3DTransformer",
    "StructuredFactorization",
    "TensorFactorization",
    "completion_path",
]
