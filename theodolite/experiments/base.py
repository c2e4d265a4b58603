"""An experiment: claims of the field made again on data, each of which holds or does not, and a figure."""

from __future__ import annotations

import json
import math
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from theodolite import __version__
from theodolite.auditing.files import check_writable, write_atomically
from theodolite.experiments import datasets
from theodolite.theorems.subject import InputError
from theodolite.value import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Claim:
    """One sentence that the experiment shows, whether it held, and the figure that decides.

    Attributes
    ----------
    statement : str
        A sentence that is true or false, with its threshold.
    holds : bool
        Whether it was true of this run.
    figure : float or str
        What was measured.
    """

    statement: str
    holds: bool
    figure: float | str

    @property
    def measured(self) -> str:
        """The figure in words."""
        return self.figure if isinstance(self.figure, str) else format_number(self.figure)


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes
    ----------
    claims : list of Claim
    numbers : dict
        Everything that the figure draws, and everything worth keeping: numbers, strings, lists,
        dicts and arrays.
    """

    claims: list[Claim]
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every claim held."""
        return all(claim.holds for claim in self.claims)


class Experiment(ABC):
    """One figure of the field, one module.

    A class sets the attributes below, computes in :meth:`run`, and draws in :meth:`plot` from
    ``result.numbers`` alone, so that the JSON file has what the picture shows.

    Attributes
    ----------
    name : str
        What ``theodolite reproduce`` calls it, in lower case with hyphens.
    title : str
    statement : str
        What is shown and why it matters; formulas in LaTeX between dollar signs.
    reference : str
        Keys of ``refs.bib``, separated by commas.
    needs : str or None
        Package whose data are read, a key of ``datasets.PACKAGES``; None if
        what is installed with theodolite is enough.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    statement: ClassVar[str]
    reference: ClassVar[str]
    needs: ClassVar[str | None] = None

    @abstractmethod
    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Compute.

        Parameters
        ----------
        fast : bool
            Smaller sizes and fewer repetitions, a few seconds; the claims stay the same.
        progress : function(str)
            Told what begins.
        """

    @abstractmethod
    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw the numbers of a result on an empty matplotlib figure."""


def check_drawable() -> None:
    """Refuse to begin where matplotlib is not installed.

    Raises
    ------
    InputError
        One sentence with the command that installs it.
    """
    if find_spec("matplotlib") is None:
        raise InputError(
            "reproduce: drawing needs matplotlib, which is not installed: pip install 'theodolite[plot]'"
        )


def reproduce(
    experiment: Experiment, folder: str | Path, *, fast: bool = False, progress: Progress = lambda _: None
) -> Result:
    """Run an experiment and write ``NAME.json`` and ``NAME.png``.

    Parameters
    ----------
    experiment : Experiment
    folder : str or Path
        An existing folder.
    fast : bool
    progress : function(str)

    Returns
    -------
    Result

    Raises
    ------
    InputError
        Before the work begins, if the data or matplotlib are not installed, or the files cannot be written.
    """
    paths = [Path(folder) / f"{experiment.name}.{suffix}" for suffix in ("json", "png")]
    if experiment.needs is not None:
        datasets.check_installed(experiment.needs)
    check_drawable()
    for path in paths:
        check_writable(path, "--out")
    start = time.monotonic()
    result = experiment.run(fast=fast, progress=progress)
    record = {
        "schema": SCHEMA,
        "theodolite": __version__,
        "experiment": experiment.name,
        "title": experiment.title,
        "statement": experiment.statement,
        "reference": experiment.reference,
        "fast": fast,
        "seconds": round(time.monotonic() - start, 3),
        "claims": [asdict(claim) for claim in result.claims],
        "numbers": result.numbers,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(terse=True),
            "threads": torch.get_num_threads(),
        },
    }
    write_atomically(paths[0], json.dumps(strict(record), indent=1) + "\n")
    progress("drawing")
    write_atomically(paths[1], lambda path: draw(experiment, result.numbers, path))
    return result


def draw(experiment: Experiment, numbers: dict[str, Any], path: Path) -> None:
    """Write the figure, without touching matplotlib's global state.

    Parameters
    ----------
    experiment : Experiment
    numbers : dict
        Those of a result, or of its JSON file.
    path : Path
        Ends in .png.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    experiment.plot(figure, numbers)
    figure.savefig(path, dpi=150, format="png")


def strict(thing: Any) -> Any:
    """Return something that strict JSON can say: arrays as lists, infinities as "inf", NaN as null."""
    if isinstance(thing, dict):
        return {str(key): strict(value) for key, value in thing.items()}
    if isinstance(thing, torch.Tensor | np.ndarray | np.generic):
        return strict(thing.tolist())
    if isinstance(thing, list | tuple):
        return [strict(value) for value in thing]
    if isinstance(thing, float) and not math.isfinite(thing):
        return None if math.isnan(thing) else "inf" if thing > 0 else "-inf"
    return thing
