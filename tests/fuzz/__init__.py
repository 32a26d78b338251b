"""Tests with damaged files: each must be refused in one sentence or read, in limited memory and time."""
