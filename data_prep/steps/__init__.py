"""The steps of a build: plan, blocks of prepared images, finished files, records."""
