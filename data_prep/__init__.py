"""From the releases on disk to the training set and the evaluation sets: `python -m data_prep --help`."""
