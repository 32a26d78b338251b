"""What surrounds the training loop of `run_train.py`."""
