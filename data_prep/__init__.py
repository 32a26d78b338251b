"""Build the training set and the evaluation sets from the releases on disk: `python -m data_prep --help`."""
