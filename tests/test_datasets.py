"""The data sets that come with the package."""

from pathlib import Path

import pandas as pd
import pytest

from bayesgmm import datasets
from bayesgmm.errors import ArgumentError

GOLDEN = Path(__file__).parent / "golden" / "data"


def test_faithful_is_the_one_that_the_golden_values_were_computed_from():
    pd.testing.assert_frame_equal(
        datasets.load("faithful"), pd.read_csv(GOLDEN / "faithful.csv"), check_exact=True
    )


def test_every_name_loads():
    assert "faithful" in datasets.names()
    for name in datasets.names():
        assert len(datasets.load(name)) > 0


@pytest.mark.parametrize("name", ["old_faithful", "../faithful", ""])
def test_unknown_name_is_refused_and_the_known_ones_are_listed(name):
    with pytest.raises(ArgumentError, match="faithful") as caught:
        datasets.load(name)
    assert caught.value.argument == "name"
