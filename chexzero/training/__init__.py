"""The parts of training around the loop in `run_train.py`."""
