"""Shared by the Python peers: their arguments, and the result file for the comparison."""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference import Reference  # noqa: E402, F401 (found through the line above, for the peers)


def arguments(description):
    """A parser for the arguments of every peer."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of encoded images")
    parser.add_argument("--out", type=Path, required=True, help="result file, .npz")
    return parser


def image_paths(folder):
    return sorted(path for path in folder.iterdir() if path.is_file())


def save(out, names, scores, seconds):
    """Write scores by file name, and the seconds from the first read to the last score."""
    np.savez(out, names=np.asarray(names), scores=np.asarray(scores, np.float32), seconds=seconds)
