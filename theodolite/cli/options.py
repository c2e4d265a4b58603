"""Options that several commands have: read, and checked before the work begins."""

from __future__ import annotations

import math
import os
import re
from typing import Any

from theodolite.cli.program import Refusal

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse a weight decay, seed, loss or device of a model that cannot be."""
    from theodolite.auditing import run
    from theodolite.theorems.validation import check_weight_decay

    check_weight_decay(settings["weight_decay"])
    run.check_seed(settings["seed"])
    if settings["loss"] not in (None, "cross_entropy", "mse"):
        raise Refusal(f"--loss: expected cross_entropy or mse, got {settings['loss']!r}")
    if settings["device"] is not None:
        run.check_device(settings["device"])


def check_outputs(outputs: dict[str, str | None]) -> None:
    """Refuse files, by the option that names them, that cannot be written or are the same."""
    from theodolite.auditing.files import check_writable

    given = {option: path for option, path in outputs.items() if path is not None}
    for option, path in given.items():
        if not path:
            raise Refusal(f"{option}: expected the name of a file, got an empty one")
        check_writable(path, option)
    if len({os.path.realpath(path) for path in given.values()}) < len(given):
        raise Refusal(f"{', '.join(given)}: expected different files, got the same one twice")


def number(option: str, text: str | None) -> float | None:
    """Return a number."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise Refusal(f"{option}: expected a number, got {text!r}") from None


def shape(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return the shape of images from "CxHxW" or "HxW"."""
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise Refusal(f"{option}: expected CxHxW or HxW, as in 1x28x28, got {text!r}")
    return tuple(int(entry) for entry in text.split("x"))


def whole(option: str, text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError:
        raise Refusal(f"{option}: expected a whole number, got {text!r}") from None


def seconds(text: str | None, zero: bool = False) -> float | None:
    """Return seconds from "60s", "5m", "1h" or "60"; 0 where that makes sense."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*(s|m|min|h|)\s*", text.lower())
    try:
        seconds = float(match[1]) * _UNITS[match[2]] if match else math.nan
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf or (zero and seconds == 0)):
        raise Refusal(f"--budget: expected a positive time such as 60s, 5m or 1h, got {text!r}")
    return seconds
