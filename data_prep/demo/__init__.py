"""A drawn corpus in the layouts of the releases."""
