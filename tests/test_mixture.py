"""The specification: a value that says what is wrong with it, and survives JSON unchanged."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import registry
from hypothesis import given
from hypothesis import strategies as st

import bayesgmm as bg
from bayesgmm import (
    ConjugatePrior,
    Covariance,
    GaussianMixture,
    HalfNormal,
    InverseGamma,
    LogNormal,
    SeparationPrior,
)
from bayesgmm.covariance import ALIASES, FAMILIES, ONE_DIMENSIONAL
from bayesgmm.errors import ArgumentError, BayesgmmError

finite = st.floats(-1e300, 1e300)
positive = st.floats(1e-300, 1e300)


def per_feature(number):
    return st.one_of(number, st.lists(number, min_size=1, max_size=4).map(tuple))


conjugate = st.builds(
    ConjugatePrior,
    shrinkage=st.floats(0, 1e6),
    dof=st.none() | positive,
    mean=st.none() | per_feature(finite),
    scale=st.none() | per_feature(positive),
    weight_concentration=positive,
)
scales = st.one_of(
    st.builds(LogNormal, mu=per_feature(finite), sigma=positive),
    st.builds(InverseGamma, alpha=positive, beta=per_feature(positive)),
    st.builds(HalfNormal, sigma=per_feature(positive)),
)
separation = st.builds(
    SeparationPrior,
    mean=per_feature(finite),
    mean_sd=per_feature(positive),
    scale=scales,
    correlation=positive,
    weight_concentration=positive,
    units=st.sampled_from(["spread", "data"]),
)
specs = st.builds(
    GaussianMixture,
    st.integers(1, 1000),
    st.sampled_from([*FAMILIES, *ONE_DIMENSIONAL, *ALIASES]),
    st.one_of(st.none(), conjugate, separation, st.sampled_from(["conjugate", "separation"])),
)
ONE_OF_EACH = [
    GaussianMixture(3, "VEV", prior)
    for prior in (
        None,
        ConjugatePrior(),
        ConjugatePrior(0.5, 7.0, (1.0, 2.0), 3.0, 2.0),
        SeparationPrior(),
        SeparationPrior(scale=InverseGamma(2.0, (1.0, 2.0)), units="data"),
        SeparationPrior(mean=(0.0, 1.0), scale=HalfNormal(0.3), correlation=1.0),
    )
]
by_spec = pytest.mark.parametrize("spec", ONE_OF_EACH, ids=range(len(ONE_OF_EACH)))

NAMES = {
    kind.__name__: kind
    for kind in (
        *(GaussianMixture, ConjugatePrior, SeparationPrior),
        *(LogNormal, InverseGamma, HalfNormal),
    )
}

# A value


@given(spec=specs)
def test_json_brings_a_specification_back(spec):
    text = spec.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = GaussianMixture.from_json(text)
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.to_json() == text


@given(spec=specs)
def test_repr_evaluates_to_the_same(spec):
    assert eval(repr(spec), NAMES) == spec


@given(one=specs, two=specs)
def test_equal_means_the_same_json(one, two):
    assert (one == two) == (one.to_json() == two.to_json())
    assert len({one, two}) == (1 if one == two else 2)


@by_spec
def test_copies_and_pickles_are_equal(spec):
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert copy.copy(spec) == copy.deepcopy(spec) == spec
    assert replace(spec, n_components=5) == GaussianMixture(5, spec.covariance, spec.prior)
    assert spec != "VEV"


@by_spec
def test_nothing_can_be_changed(spec):
    for name in ("n_components", "covariance", "prior", "other"):
        with pytest.raises(FrozenInstanceError):
            setattr(spec, name, 2)
    with pytest.raises(FrozenInstanceError):
        spec.covariance.letters = "EII"
    if spec.prior is not None:
        with pytest.raises(FrozenInstanceError):
            spec.prior.weight_concentration = 3.0


def test_names_stand_for_values():
    assert GaussianMixture(2) == GaussianMixture(2, "VVV", ConjugatePrior())
    assert GaussianMixture(2, "full", "separation").prior == SeparationPrior()
    assert GaussianMixture(2, Covariance("EEE")) == GaussianMixture(2, "tied")
    assert GaussianMixture(np.int64(2)) == GaussianMixture(2)
    assert type(GaussianMixture(np.int64(2)).n_components) is int
    expected = {
        "spherical": "VII",
        "tied-spherical": "EII",
        "diag": "VVI",
        "diagonal": "VVI",
        "tied-diag": "EEI",
        "tied_diagonal": "EEI",
        "tied": "EEE",
        "Full": "VVV",
        "vvi": "VVI",
        "e": "E",
    }
    for name, letters in expected.items():
        assert GaussianMixture(2, name).covariance.letters == letters


def test_numbers_are_kept_as_floats_and_tuples():
    prior = ConjugatePrior(shrinkage=1, mean=[1, 2], scale=np.array([1, 2]))
    assert prior == ConjugatePrior(1.0, None, (1.0, 2.0), (1.0, 2.0))
    assert hash(prior) == hash(ConjugatePrior(1.0, None, (1.0, 2.0), (1.0, 2.0)))
    assert isinstance(prior.mean, tuple)
    assert SeparationPrior(mean=np.float32(2)).mean == 2.0


# Parameter counts: that they are mclust's, row by row, is in test_golden_em.py


@pytest.mark.parametrize("family", registry.EVERY, ids=str)
def test_one_dimension_and_one_component_need_no_letters(family):
    one = GaussianMixture(1, family).n_parameters(1)
    assert one == 2  # a mean and a variance
    two = GaussianMixture(2, family).n_parameters(1)
    assert two == (5 if family.volume == "V" else 4)
    axes = family.is_diagonal
    d = 3
    own = {"I": 1, "E": d, "V": d}[family.shape] if axes else d * (d + 1) // 2
    assert GaussianMixture(1, family).n_parameters(d) == d + own


# What is wrong, by name


WRONG = {
    "n_components is text": (lambda: GaussianMixture("2"), "n_components"),
    "n_components is 0": (lambda: GaussianMixture(0), "n_components"),
    "n_components is negative": (lambda: GaussianMixture(-1), "n_components"),
    "n_components is 2.0": (lambda: GaussianMixture(2.0), "n_components"),
    "n_components is True": (lambda: GaussianMixture(True), "n_components"),
    "n_components is None": (lambda: GaussianMixture(None), "n_components"),
    "n_components is a list": (lambda: GaussianMixture([2]), "n_components"),
    "covariance unknown": (lambda: GaussianMixture(2, "EIV"), "covariance"),
    "covariance empty": (lambda: GaussianMixture(2, ""), "covariance"),
    "covariance a number": (lambda: GaussianMixture(2, 3), "covariance"),
    "covariance None": (lambda: GaussianMixture(2, None), "covariance"),
    "family unknown": (lambda: Covariance("VV"), "covariance"),
    "family not text": (lambda: Covariance(["VVV"]), "covariance"),
    "prior unknown": (lambda: GaussianMixture(2, prior="flat"), "prior"),
    "prior a number": (lambda: GaussianMixture(2, prior=1.0), "prior"),
    "prior a class": (lambda: GaussianMixture(2, prior=ConjugatePrior), "prior"),
    "prior a scale": (lambda: GaussianMixture(2, prior=LogNormal()), "prior"),
    "shrinkage negative": (lambda: ConjugatePrior(shrinkage=-1), "shrinkage"),
    "shrinkage two": (lambda: ConjugatePrior(shrinkage=(1, 2)), "shrinkage"),
    "shrinkage NaN": (lambda: ConjugatePrior(shrinkage=float("nan")), "shrinkage"),
    "shrinkage None": (lambda: ConjugatePrior(shrinkage=None), "shrinkage"),
    "dof zero": (lambda: ConjugatePrior(dof=0), "dof"),
    "dof infinite": (lambda: ConjugatePrior(dof=float("inf")), "dof"),
    "dof two": (lambda: ConjugatePrior(dof=(3, 4)), "dof"),
    "mean text": (lambda: ConjugatePrior(mean="here"), "mean"),
    "mean a matrix": (lambda: ConjugatePrior(mean=np.eye(2)), "mean"),
    "mean empty": (lambda: ConjugatePrior(mean=()), "mean"),
    "scale zero": (lambda: ConjugatePrior(scale=(1.0, 0.0)), "scale"),
    "concentration zero": (
        lambda: ConjugatePrior(weight_concentration=0),
        "weight_concentration",
    ),
    "separation scale": (lambda: SeparationPrior(scale=2.0), "scale"),
    "separation units": (lambda: SeparationPrior(units="cm"), "units"),
    "separation mean_sd": (lambda: SeparationPrior(mean_sd=0), "mean_sd"),
    "separation mean": (lambda: SeparationPrior(mean=np.nan), "mean"),
    "separation correlation": (lambda: SeparationPrior(correlation=-1), "correlation"),
    "separation concentration": (
        lambda: SeparationPrior(weight_concentration=(1, 1)),
        "weight_concentration",
    ),
    "log-normal mu": (lambda: LogNormal(mu="a"), "mu"),
    "log-normal sigma": (lambda: LogNormal(sigma=0), "sigma"),
    "log-normal sigmas": (lambda: LogNormal(sigma=(1, 2)), "sigma"),
    "inverse-gamma alpha": (lambda: InverseGamma(alpha=-1), "alpha"),
    "inverse-gamma beta": (lambda: InverseGamma(beta=(1, -1)), "beta"),
    "half-normal sigma": (lambda: HalfNormal(sigma=0), "sigma"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case):
    make, argument = WRONG[case]
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.argument == argument
    assert str(caught.value).startswith(f"{argument}: ")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, BayesgmmError)


def test_errors_say_what_would_be_right():
    with pytest.raises(ArgumentError, match=r"EII, VII.*VVV, E, V or an alias \(spherical"):
        GaussianMixture(2, "elliptic")
    with pytest.raises(ArgumentError, match="'conjugate', 'separation'"):
        GaussianMixture(2, prior="flat")


NOT_A_SPEC = [
    "",
    "{",
    "null",
    "3",
    "[]",
    '"text"',
    "{}",
    '{"n_components": 2, "covariance": "VVV"}',
    '{"n_components": 2, "covariance": "VVV", "prior": {}}',
    '{"n_components": 2, "covariance": "VVV", "prior": "conjugate!"}',
    '{"n_components": 2, "covariance": "VVV", "prior": 5}',
    '{"n_components": 2, "covariance": "VVV", "prior": [1, 2]}',
    '{"n_components": 2, "covariance": "VVV", "prior": {"kind": "flat"}}',
    '{"n_components": 2, "covariance": "VVV", "prior": {"kind": []}}',
    '{"n_components": 2, "covariance": "VVV", "prior": {"kind": "conjugate", "nu": 3}}',
    '{"n_components": 2, "covariance": "VVV", "prior": {"kind": "conjugate", "dof": "many"}}',
    '{"n_components": 2, "covariance": "VVV", "prior": {"kind": "conjugate", "dof": 1e999}}',
    '{"n_components": 2, "covariance": "VVV", "prior": {"kind": "separation", "scale": "x"}}',
    '{"n_components": 2, "covariance": "VVV", "prior": {"kind": "separation", "scale": {}}}',
    '{"n_components": 2, "covariance": "VVV", "prior": {"kind": "conjugate", "mean": {"a": 1}}}',
    '{"n_components": "two", "covariance": "VVV", "prior": null}',
    '{"n_components": 2.5, "covariance": "VVV", "prior": null}',
    '{"n_components": 2, "covariance": ["VVV"], "prior": null}',
    '{"n_components": 2, "covariance": null, "prior": null}',
    "\x00",
]


@pytest.mark.parametrize("text", NOT_A_SPEC, ids=range(len(NOT_A_SPEC)))
def test_what_is_no_specification_is_refused(text):
    with pytest.raises(ArgumentError):
        GaussianMixture.from_json(text)


@pytest.mark.parametrize("value", [None, 3, b"\xff\xfe", ["{}"]])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(ArgumentError, match="text"):
        GaussianMixture.from_json(value)


def test_families_for_one_dimension_refuse_more():
    with pytest.raises(ArgumentError, match=r"covariance: V is for one column, X has 2"):
        bg.fit_em(GaussianMixture(2, "V"), registry.table("faithful"))
