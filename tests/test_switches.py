"""The tables of `benchmarks.switches`, from validations with known differences."""

import pandas as pd

from benchmarks.switches import curve_table, table


def runs(*lasts):
    return [pd.Series([0.5, last], index=[0, 100]) for last in lasts]


def test_differences_are_paired_by_seed():
    found = table({"none": runs(0.60, 0.70, 0.80), "ema": runs(0.61, 0.72, 0.83)}).splitlines()
    assert found[2:] == [
        "| none | 0.700 | | |",
        "| ema | 0.720 | +0.020 | -0.005 to +0.045 |",
    ]  # 0.01 * 4.303 / sqrt(3)


def test_the_curve_is_the_mean_over_seeds():
    assert curve_table({"none": runs(0.6, 0.8)}).splitlines()[2:] == ["| 0 | 0.500 |", "| 100 | 0.700 |"]
