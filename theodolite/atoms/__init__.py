"""One family of subnetworks a file: phi, theta and the polar that belongs to them."""

from theodolite.atoms.conv import ConvReLUAtom
from theodolite.atoms.gated import GatedReLUAtom
from theodolite.atoms.leaky_relu import LeakyReLUAtom
from theodolite.atoms.linear_net import LinearNetAtom
from theodolite.atoms.matrix import MatrixAtom
from theodolite.atoms.module import ModuleAtom
from theodolite.atoms.quadratic import QuadraticAtom
from theodolite.atoms.relu import ReLUAtom
from theodolite.atoms.sign import SignMatrixAtom
from theodolite.atoms.structured import StructuredAtom
from theodolite.atoms.tensor import TensorAtom
from theodolite.core.atom import Atom

# every family: the documentation's pages and the tests' cases follow this list
ALL: list[type[Atom]] = [
    MatrixAtom,
    LinearNetAtom,
    ReLUAtom,
    LeakyReLUAtom,
    ConvReLUAtom,
    GatedReLUAtom,
    QuadraticAtom,
    SignMatrixAtom,
    StructuredAtom,
    TensorAtom,
    ModuleAtom,
]

__all__ = [
    "ALL",
    "ConvReLUAtom",
    "GatedReLUAtom",
    "LeakyReLUAtom",
    "LinearNetAtom",
    "MatrixAtom",
    "ModuleAtom",
    "QuadraticAtom",
    "ReLUAtom",
    "SignMatrixAtom",
    "StructuredAtom",
    "TensorAtom",
]
