"""The robustness campaign: kills, signals, faults of the disk and limits, many of each; `python -m tests.campaign`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the corpora and small models of the tests
