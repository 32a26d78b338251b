"""The overlap audit, part by part: ids, reports, near-equal images in two stages, their measurement, the report."""
