"""A training run's folder and the choice of its checkpoint."""
