"""A campaign of damaged files: each is refused in one sentence or read right, in bounded memory and time."""
