"""The robustness campaign: many kills, signals, disk faults and limits; `python -m tests.campaign`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the tests' corpora and small models
