"""What every experiment's results file holds: the figures, and how to get them again."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from invgan.data.files import write_whole
from invgan.errors import InputError


def provenance(*, seeds: Sequence[int]) -> dict[str, Any]:
    """Describe the run: command, seeds, commit, hardware and versions."""
    command = " ".join(["invgan", *sys.argv[1:]]) if sys.argv[0].endswith("invgan") else " ".join(sys.argv)
    return {
        "command": command,
        "seeds": list(seeds),
        "commit": COMMIT,
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "accelerator": accelerator(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def accelerator() -> str | None:
    """Name what this machine would train on beside its processor, if anything."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write a results file whole or not at all; floats are kept to six digits."""
    text = json.dumps(_rounded(results), indent=1, ensure_ascii=False) + "\n"
    _make_folder(path.parent)
    write_whole(path, lambda file: file.write(text.encode()), what="results")


def mean_and_std(values: Sequence[float]) -> str:
    """Format a sample for a table: mean ± standard deviation over seeds, of which one has none."""
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values):.4f}" if len(values) > 1 else "")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _commit() -> str | None:
    """The checkout's commit, with a mark if files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "."],
            cwd=folder.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed.strip() else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure whole or not at all."""
    _make_folder(path.parent)
    write_whole(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=110), what="figure")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({error.strerror}); choose another --out.") from error


COMMIT = _commit()
"""The code that runs: asked for before a long run, during which the checkout may move on."""
