"""What comes in: every kind of table is read alike, every bad one is refused by name."""

from __future__ import annotations

import warnings
from decimal import Decimal
from functools import partial

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from bayesgmm import errors
from bayesgmm.covariance import FAMILIES, Covariance
from bayesgmm.data.observations import read, read_like, times
from bayesgmm.moments import Parameters

FULL, DIAGONAL = Covariance("VVV"), Covariance("VVI")
A = np.random.default_rng(1).normal(size=(40, 3))
FRAME = pd.DataFrame(A, columns=["a", "b", "c"])


def refused(error, *fragments):
    """Expect an error whose message has every fragment."""
    pattern = "".join(f"(?=.*{fragment})" for fragment in fragments)
    return pytest.raises(error, match=f"(?s){pattern}")


def warned(code, *fragments):
    pattern = "".join(f"(?=.*{fragment})" for fragment in fragments)
    return pytest.warns(errors.DataWarning, match=rf"(?s)\[{code}\]{pattern}")


# Every kind of table (H20)


def polars(frame, kind="DataFrame"):
    table = pytest.importorskip("polars").DataFrame(frame.to_dict("list"))
    return table.lazy() if kind == "LazyFrame" else table


def arrow(frame):
    return pytest.importorskip("pyarrow").table(frame.to_dict("list"))


class Convertible:
    def __array__(self, dtype=None, copy=None):
        return A.copy()


NAMED = {
    "pandas": lambda f: f,
    "nullable": lambda f: f.astype("Float64"),
    "mapping": lambda f: {name: f[name].tolist() for name in f},
    "records": lambda f: f.to_records(index=False),
    "polars": polars,
    "lazy polars": partial(polars, kind="LazyFrame"),
    "pyarrow": arrow,
    "xarray": lambda f: xr.DataArray(f.to_numpy(), dims=("i", "j"), coords={"j": list(f.columns)}),
}
UNNAMED = {
    "C order": lambda: A,
    "Fortran order": lambda: np.asfortranarray(A),
    "strided": lambda: np.repeat(A, 2, axis=0)[::2],
    "big-endian": lambda: A.astype(">f8"),
    "long double": lambda: A.astype(np.longdouble),
    "lists": lambda: A.tolist(),
    "tuples": lambda: tuple(map(tuple, A)),
    "objects": lambda: A.astype(object),
    "masked, nothing masked": lambda: np.ma.array(A),
    "__array__": Convertible,
    "xarray without names": lambda: xr.DataArray(A),
}


@pytest.mark.parametrize("make", NAMED.values(), ids=NAMED)
def test_named_tables_are_read_alike(make):
    data = read(make(FRAME))
    assert data.names == ("a", "b", "c")
    assert_array_equal(data.original(), A)
    assert data.fingerprint == read(FRAME).fingerprint


@pytest.mark.parametrize("make", UNNAMED.values(), ids=UNNAMED)
def test_arrays_are_read_alike(make):
    data = read(make())
    assert data.names == ("x0", "x1", "x2")
    assert_array_equal(data.original(), A)
    assert_array_equal(data.x, read(A).x)
    assert data.x.shape == (40, 3)
    assert data.x.flags.c_contiguous
    assert (data.n, data.d, data.total_weight) == (40, 3, 40.0)


@pytest.mark.parametrize(
    "dtype",
    [
        *("int8", "int16", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64"),
        *("Int16", "UInt32", "Int64", "Float32", "int64[pyarrow]", "float[pyarrow]", "object"),
    ],
)
def test_number_types_are_read_alike(dtype):
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow")
    whole = pd.DataFrame({"a": [1, 5, 2, 7], "b": [3, 0, 0, 1]})
    data = read(whole.astype(dtype))
    assert data.values.dtype == data.x.dtype == np.float64
    assert_array_equal(data.original(), whole)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        (A[:, 0], "x0"),
        (A[:, 0].tolist(), "x0"),
        (pd.Series(A[:, 0]), "x0"),
        (pd.Series(A[:, 0], name="waiting"), "waiting"),
        (xr.DataArray(A[:, 0]), "x0"),
        (xr.DataArray(A[:, 0], name="waiting"), "waiting"),
    ],
)
def test_one_dimension_is_one_column(column, name):
    data = read(column)
    assert data.names == (name,)
    assert_array_equal(data.original()[:, 0], A[:, 0])


def test_a_polars_series_keeps_its_name():
    pl = pytest.importorskip("polars")
    assert read(pl.Series("waiting", A[:, 0].tolist())).names == ("waiting",)
    assert read(pl.Series(A[:, 0].tolist())).names == ("x0",)


def test_decimals_and_python_numbers_in_objects_are_numbers():
    data = read(pd.DataFrame({"a": [Decimal("0.5"), Decimal(2)], "b": [np.float32(1), 3]}))
    assert_array_equal(data.original(), [[0.5, 1.0], [2.0, 3.0]])


def test_row_labels_are_kept():
    labels = [f"car {i}" for i in range(40)]
    assert list(read(FRAME.set_index(pd.Index(labels))).index) == labels
    array = xr.DataArray(A, dims=("car", "j"), coords={"car": labels})
    assert list(read(array).index) == labels
    assert list(read(A).index) == list(range(40))


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ([1, "a", None], ("1", "a", "x2")),
        ([np.nan, 2.5, True], ("x0", "2.5", "True")),
        (pd.RangeIndex(3), ("0", "1", "2")),
        (pd.MultiIndex.from_tuples([("p", 1), ("p", 2), ("q", 1)]), ("p.1", "p.2", "q.1")),
        (["_hidden", "", "日本"], ("_hidden", "", "日本")),
    ],
)
def test_names_become_text(columns, names):
    assert read(FRAME.set_axis(columns, axis=1)).names == names


@pytest.mark.parametrize("columns", [["a", "b", "a"], [1, "1", "c"], [None, "x0", "c"]])
def test_names_that_coincide_are_refused(columns):
    with refused(errors.ColumnNameError, "several columns", repr(str(columns[0] or "x0"))):
        read(FRAME.set_axis(columns, axis=1))


def test_columns_are_chosen_by_name_in_order():
    mixed = FRAME.assign(species="setosa")
    data = read(mixed, columns=["c", "a"])
    assert data.names == ("c", "a")
    assert_array_equal(data.original(), A[:, [2, 0]])
    assert read(A, columns=["x1"]).names == ("x1",)


def test_columns_that_do_not_exist_are_refused():
    frame = FRAME.rename(columns={"b": "Petal.Width"})
    with refused(errors.ColumnNameError, "no 'petal.width'", "mean 'Petal.Width'", "'a', .*'c'"):
        read(frame, columns=["a", "petal.width"])
    with refused(errors.ColumnNameError, "'a'"):
        read(FRAME, columns=["a", "a"])
    with refused(errors.ArgumentError, "columns", r"\['a'\]"):
        read(FRAME, columns="a")
    with refused(errors.EmptyDataError, "columns"):
        read(FRAME, columns=[])


# Not a table (H22, A16)


@pytest.mark.parametrize(
    ("X", "fragments"),
    [
        (3.0, ["0-D"]),
        (None, ["0-D", "NoneType"]),
        ((x for x in (1, 2)), ["0-D", "generator"]),
        (np.zeros((2, 3, 4)), ["3-D", r"\(2, 3, 4\)"]),
        (xr.DataArray(A[:, :, None], dims=["p", "q", "r"]), ["3-D", "'r'"]),
        ([[1, 2], [3, 4], [5]], ["ragged", "row 2", "length 1"]),
        ([[1, 2], 3], ["ragged", "row 1", "single number"]),
        (np.array([[1, 2], [3]], dtype=object), ["ragged", "row 1"]),
        ({"a": [1, 2], "b": [1, 2, 3]}, ["column 'b'", r"\(3,\)"]),
        ("data.csv", ["data.csv", "read_csv"]),
        (xr.Dataset({"a": ("i", [1.0, 2.0])}), ["Dataset", "to_dataframe"]),
    ],
)
def test_what_is_no_table_is_refused(X, fragments):
    with refused(errors.ShapeError, "X", *fragments):
        read(X)


def test_sparse_matrices_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with refused(errors.ShapeError, "sparse", "toarray"):
        read(sparse.csr_array(A))


@pytest.mark.parametrize(
    ("X", "what"),
    [
        (np.empty((10, 0)), "10 rows but no columns"),
        (np.empty((0, 3)), "no rows"),
        ([], "no rows"),
        (pd.DataFrame(), "no columns"),
        (FRAME[FRAME["a"] > 99], "no rows"),
    ],
)
def test_empty_tables_are_refused(X, what):
    with refused(errors.EmptyDataError, "X", what):
        read(X)


# Not numbers (H11, H12, H16)

ROWS = ["r0", "r1", "r2", "r3"]


@pytest.mark.parametrize(
    ("column", "fragments"),
    [
        (["u", "v", "w", "u"], ["text", "'u' in row 'r0'"]),
        ([1, 2, "?", 4], [r"'\?' in row 'r2'"]),
        ([1, None, "n/a", 4], ["'n/a' in row 'r2'"]),
        (["1.5", "2", "3", "4"], ["text", "to_numeric"]),
        (["1,5", "2", "3", "4"], ["text", "decimal=','"]),
        (pd.Categorical(["u", "v", "u", "v"]), ["categories", "'u'"]),
        (pd.Categorical([1, 2, 1, 2]), ["categories"]),
        (pd.date_range("2020", periods=4), ["dates", "2020"]),
        (pd.date_range("2020", periods=4, tz="UTC"), ["dates"]),
        (pd.timedelta_range("1s", periods=4), ["time differences"]),
        (pd.period_range("2020", periods=4), ["periods"]),
        (pd.interval_range(0, 4), ["intervals"]),
        ([True, False, True, True], ["booleans", "True in row 'r0'"]),
        (pd.array([True, None, True, False], dtype="boolean"), ["booleans"]),
        ([1j, 2, 3, 4], ["complex", "1j"]),
        ([1, 2, 10**22, 4], ["64 bits", "10{22} in row 'r2'", "identifier"]),
        ([1, 2, 10**400, 4], ["64 bits", "row 'r2'"]),
    ],
)
def test_columns_without_numbers_are_refused(column, fragments):
    frame = pd.DataFrame({"a": range(4), "bad": column}).set_axis(ROWS)
    with refused(errors.NonNumericError, "column 'bad'", r"columns=\['a'\]", *fragments):
        read(frame)


@pytest.mark.parametrize("array", [A > 0, A + 1j, A.astype(str), A.astype("M8[s]")])
def test_arrays_without_numbers_are_refused(array):
    with refused(errors.NonNumericError, "'x0'", "'x1'", "'x2'", "row 0"):
        read(array)


def test_one_text_in_lists_leaves_the_other_columns_numeric():
    with refused(errors.NonNumericError, "column 'x1'", "'b' in row 1", r"columns=\['x0'\]"):
        read([[1, 2], [3, "b"], [5, 6]])


def test_many_offenders_are_counted():
    frame = pd.DataFrame({f"t{j}": ["u", "v"] for j in range(9)})
    with refused(errors.NonNumericError, "'t0'", "'t4'", "and 4 more"):
        read(frame)


# Not there, or not finite (H01)


def with_cell(value, row=17, column=1):
    changed = A.copy()
    changed[row, column] = value
    return changed


@pytest.mark.parametrize(
    "X",
    [
        pd.DataFrame(with_cell(np.nan), columns=["a", "b", "c"]),
        pd.DataFrame(with_cell(np.nan), columns=["a", "b", "c"]).convert_dtypes(),
        pd.DataFrame(A.astype(object), columns=["a", "b", "c"]).replace({"b": {A[17, 1]: None}}),
        xr.DataArray(with_cell(np.nan), dims=("i", "j"), coords={"j": ["a", "b", "c"]}),
    ],
)
def test_missing_values_are_refused(X):
    with refused(
        errors.MissingValueError, "1 missing", "row 17, column 'b'", "impute", "marginalise"
    ):
        read(X)


def test_other_missing_values_are_refused():
    with refused(errors.MissingValueError, "1 missing", "row 17, column 'x1'"):
        read(np.ma.array(A, mask=np.isnan(with_cell(np.nan))))
    with refused(errors.MissingValueError, "row 1, column 'x0'"):
        read([[1, 2], [None, 3], [4, 6]])
    with refused(errors.MissingValueError, "40 missing", "'b'", "and 35 more"):
        read(FRAME.assign(b=None))
    with refused(errors.MissingValueError, "row 'r3', column 'a'"):
        read(pd.DataFrame({"a": pd.array([1, 2, 3, None], dtype="Int64")}).set_axis(ROWS))


def test_nulls_of_other_libraries_are_missing_values():
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    columns = {"a": [1, 2, None], "b": [1.0, 3.0, 2.0]}
    for table in (pl.DataFrame(columns), pa.table(columns)):
        with refused(errors.MissingValueError, "row 2, column 'a'"):
            read(table)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_refused(value):
    with refused(errors.InfiniteValueError, "1 infinite", "row 17, column 'x1'", "Drop"):
        read(with_cell(value))


def test_a_row_of_weight_zero_must_still_hold_numbers():
    weight = np.ones(40)
    weight[17] = 0
    with refused(errors.MissingValueError, "row 17"):
        read(with_cell(np.nan), sample_weight=weight)


# Degenerate data (A)


def test_a_single_row_is_refused():
    with refused(errors.TooFewRowsError, "single row"):
        read([[1.0, 2.0]])


def test_constant_columns_are_refused():
    with refused(errors.ConstantColumnError, "'b'", "always 2", r"columns=\['a', 'c'\]"):
        read(FRAME.assign(b=2.0))
    with refused(errors.ConstantColumnError, "no column varies", "'x0'", "'x1'"):
        read(np.tile([1.0, 2.0], (50, 1)), n_components=2)
    with refused(errors.ConstantColumnError, "'x0'", "positive weight"):
        read([[1.0, 5], [1, 6], [9, 7]], sample_weight=[3, 3, 0])


@pytest.mark.parametrize("weight", [None, 3.0])
def test_fewer_distinct_rows_than_components_are_refused(weight):
    X = np.repeat([[1.0, 2.0], [3.0, 5.0]], 500, axis=0)
    weights = None if weight is None else np.full(1000, weight)
    with refused(errors.TooFewRowsError, "2 distinct", "n_components=3"):
        read(X, n_components=3, family=FULL, sample_weight=weights)
    with refused(errors.TooFewRowsError, "3 distinct", "n_components=5"):
        read(A[:3], n_components=5, family=FULL)


def test_only_rows_of_positive_weight_are_distinct():
    X = [[1.0, 2.0], [3.0, 5.0], [4.0, 4.0]]
    with refused(errors.TooFewRowsError, "2 distinct", "n_components=3"):
        read(X, n_components=3, sample_weight=[3, 4, 0])
    assert read(X, n_components=3, sample_weight=[3, 4, 1]).n == 3


def test_distinct_rows_far_apart_are_found():
    X = np.zeros(5000)
    X[-2:] = 1.0, 2.0
    with warned("tied-rows"):
        read(X, n_components=3)


@pytest.mark.parametrize(
    ("dependent", "text"),
    [
        (lambda a, b: 2.0 * a, r"x2 = 2\*x0\."),
        (lambda a, b: -a, r"x2 = -x0\."),
        (lambda a, b: b, r"x2 = x1\."),
        (lambda a, b: 2.0 * a + 0.5 * b, r"x2 = 2\*x0 \+ 0\.5\*x1\."),
        (lambda a, b: 0.1 * a - 1e4 * b + 7.0, r"x2 = 0\.1\*x0 - 1e\+04\*x1 \+ 7\."),
        (lambda a, b: (a + 1e-12 * b) * 1e-8, r"x2 = 1e-08\*x0\."),
    ],
)
@pytest.mark.parametrize("family", ["VVV", "EEE", "EVE"])
def test_collinear_columns_are_refused(dependent, text, family):
    X = np.column_stack([A[:, 0], A[:, 1], dependent(A[:, 0], A[:, 1])])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\[unequal-scales\]")
        with refused(errors.CollinearColumnsError, text, "diagonal", "Drop"):
            read(X, family=Covariance(family))


def test_every_dependence_is_named():
    X = np.column_stack([A, A[:, 0] + A[:, 1], 3 * A[:, 2]])
    with refused(errors.CollinearColumnsError, r"x3 = x0 \+ x1", r"x4 = 3\*x2"):
        read(X, family=FULL)


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
def test_collinear_columns_are_seen_at_an_offset(offset):
    X = np.column_stack([A[:, :2], A[:, 0] + 2 * A[:, 1]]) + offset
    with refused(errors.CollinearColumnsError, "x2 = "):
        read(X, family=FULL)


def test_collinear_integers_beyond_double_precision_are_seen_and_others_are_not():
    whole = np.random.default_rng(2).integers(0, 10**6, size=(50, 2))
    X = 2**60 + np.column_stack([whole, whole.sum(axis=1)])
    with warned("precision-loss"), refused(errors.CollinearColumnsError, "x2 = "):
        read(X, family=FULL)
    X[:, 2] += np.tile([10, -10], 25)  # integers are exact: a residual of 3e-5 is one
    with warned("precision-loss"):
        assert read(X, family=FULL).d == 3


def test_rounding_at_an_offset_is_no_collinearity():
    X = 1e16 + np.column_stack([10 * A[:, 0], 10 * A[:, 0] + 3 * A[:, 1]])
    with warned("precision-loss"):
        assert read(X, family=FULL).d == 2


def test_collinear_columns_are_fine_for_diagonal_families():
    X = np.column_stack([A, 2 * A[:, 0]])
    assert read(X, family=DIAGONAL).d == 4


def test_rows_of_weight_zero_do_not_make_columns_independent():
    X = np.column_stack([A, 2 * A[:, 0]])
    X[5, 3] = 77.0
    weight = np.ones(40)
    weight[5] = 0.0
    assert read(X, family=FULL).d == 4
    with refused(errors.CollinearColumnsError, r"x3 = 2\*x0"):
        read(X, family=FULL, sample_weight=weight)


@pytest.mark.parametrize("noise", [1e-7, 1e-9, 1e-10])
def test_nearly_collinear_columns_are_warned_of(noise):
    X = np.column_stack([A[:, :2], A[:, 0] + noise * A[:, 2]])
    with warned("near-collinear", "x2 = x0", "condition number"):
        data = read(X, family=FULL)
    assert np.isfinite(data.x).all()
    read(X, family=DIAGONAL)
    read(np.column_stack([A[:, :2], A[:, 0] + 1e-5 * A[:, 2]]), family=FULL)


def test_more_parameters_than_rows_are_warned_of():
    X = np.random.default_rng(3).normal(size=(10, 50))
    with warned("underdetermined", "2651", "10 rows", "EEE", "VVI", "prior"):
        assert read(X, family=FULL, n_components=2).d == 50
    with warned("underdetermined", "11 free parameters for 10 rows"):
        read(X[:, :2], family=FULL, n_components=2)
    read(X[:, :2], family=FULL, n_components=2, sample_weight=np.full(10, 1.1))


def test_a_point_that_repeats_is_warned_of():
    X = np.vstack([A, np.tile([1.0, 2.0, 3.0], (6, 1))])
    with warned("tied-rows", "6 of 46", "1, 2, 3", "prior"):
        read(X)
    weight = np.ones(41)
    weight[40] = 6
    with warned("tied-rows", "6 of 46"):
        read(X[:41], sample_weight=weight)
    read(np.vstack([A, A]))
    with warned("tied-rows"):
        read(np.random.default_rng(4).normal(size=150).round())  # A13


def test_one_dimensional_families_are_for_one_column():
    with refused(errors.ArgumentError, "covariance", "V is for one column", "X has 3"):
        read(A, family=Covariance("V"))
    assert read(A[:, 0], family=Covariance("V")).d == 1


def test_the_cause_of_a_warning_is_the_callers_line():
    with pytest.warns(errors.DataWarning) as caught:
        read(np.vstack([A, A]), family=FULL, n_components=9)
    assert [w.message.code for w in caught] == ["underdetermined"]
    assert caught[0].filename == __file__


def test_long_relations_are_cut_short():
    B = np.random.default_rng(6).normal(size=(60, 20))
    with refused(errors.CollinearColumnsError, r"x20 = x0 \+ .* \+ \.\.\. \(20 terms\)"):
        read(np.column_stack([B, B.sum(axis=1)]), family=FULL)


# Scale, offset, precision (B)


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e-4, 1.0, 1e8, 1e150])
@pytest.mark.parametrize("family", FAMILIES)
def test_units_do_not_matter(scale, family):
    """Anchored values agree with those of the unscaled table up to a power of two."""
    data, plain = read(A * scale, family=Covariance(family)), read(A, family=Covariance(family))
    factor = data.scale / plain.scale / scale
    assert_allclose(data.x * factor, plain.x, rtol=1e-13, atol=1e-9)
    assert_allclose(data.covariance * np.outer(factor, factor), plain.covariance, rtol=1e-12)
    sd = np.sqrt(np.diag(data.covariance))
    assert (sd > 0.4).all()
    assert (sd < 2.5).all()


def test_columns_have_scales_of_their_own_where_the_family_allows_it():
    X = A * [1e-150, 1.0, 1e150]
    for letters in FAMILIES:
        family = Covariance(letters)
        if family.is_axis_equivariant:
            data = read(X, family=family)
            assert_allclose(np.diag(data.covariance), 1.0, atol=1.1)
        else:
            with refused(errors.ScaleError, "'x2'", "'x0'", "standardise"):
                read(X, family=family)
            assert len(set(read(A * [1, 5, 25], family=family).scale)) == 1


def test_units_that_a_family_cannot_balance_are_warned_of():
    with warned("unequal-scales", "'x1'", "EVE", "standardise"):
        read(A * [1, 1e8, 1], family=Covariance("EVE"))


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-160, 1e160, 1e200, 1e300])
def test_scales_whose_squares_do_not_exist_are_refused(scale):
    X = A.copy()
    X[:, 1] *= scale
    with refused(errors.ScaleError, "column 'x1'", "divide"):
        read(X)


def test_a_far_row_of_weight_zero_is_refused():
    weight = np.ones(40)
    weight[17] = 0
    with refused(errors.ScaleError, "row 17"):
        read(with_cell(1e160), sample_weight=weight)


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e7, 1e8, -1e10, 1e12])
def test_offsets_do_not_matter(offset):
    shifted = A + offset
    data, plain = read(shifted), read(A)
    assert_array_equal(data.scale, plain.scale)
    held = np.spacing(abs(offset))
    assert_allclose(data.x, plain.x, rtol=0, atol=4 * held + 1e-15)
    assert_allclose(data.covariance, plain.covariance, rtol=0, atol=8 * held + 1e-13)
    # Nothing but the rounding of the data themselves is lost: differences are exact.
    assert_array_equal(data.x[1:] - data.x[0], (shifted[1:] - shifted[0]) / data.scale)


def test_lost_digits_are_warned_of():
    with warned("precision-loss", "column 'x1'", "offset", "digits"):
        read(A + np.array([0.0, 1e14, 0.0]))
    with warned("precision-loss", "'x0'", "'x1'", "'x2'"):
        read((A + 1e6).astype(np.float32))  # the digits of float32, not of float64
    read((A + 1e4).astype(np.float32))
    read(A + 1e12)


def test_float32_is_converted_before_anything_is_computed():
    X = (A + 1e4).astype(np.float32)
    data = read(X)
    assert_array_equal(data.original(), X.astype(np.float64))
    assert_array_equal(data.x, read(X.astype(np.float64)).x)


@pytest.mark.parametrize("base", [2**60, -(2**62), 2**53, 2**63 - 2000])
def test_large_integers_are_centred_before_they_are_converted(base):
    whole = np.random.default_rng(5).integers(0, 1000, size=(50, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\[precision-loss\]")
        data = read(whole + base)
    assert_array_equal(data.x[1:] - data.x[0], (whole[1:] - whole[0]) / data.scale)
    back = [int(c) for c in data.center]
    assert [back[0] + round(v) for v in data.x[:, 0] * data.scale[0]] == (
        whole[:, 0] + base
    ).tolist()


def test_large_integers_warn_only_where_their_spacing_is_lost():
    whole = np.random.default_rng(5).integers(0, 1000, size=(50, 2))
    with warned("precision-loss", "'x0'", "subtract"):
        read(whole + 2**60)
    read(whole * 10**12 + 2**60)
    unsigned = np.array([[0], [2**64 - 1], [2**63]], dtype=np.uint64)
    assert_allclose(read(unsigned).x[:, 0] * read(unsigned).scale, [-(2.0**63), 2.0**63, 0.0])


def test_an_outlier_leaves_the_digits_of_the_other_rows():
    with warned("far-row", "row 17 is .* of column"):
        data = read(with_cell(1e12))
    others = np.delete(np.arange(40), 17)
    back = data.x[others, 1] * data.scale[1] + data.center[1]
    assert_allclose(back, A[others, 1], rtol=0, atol=1e-12)


def test_a_two_row_column_is_read():
    data = read([[9999.0], [0.0]], n_components=2)  # B07
    assert_allclose(data.covariance * data.scale**2, np.var([9999, 0], ddof=1))


# Statistics, weights (D14, D15)


def test_statistics_are_those_of_the_data():
    data = read(FRAME * [1.0, 1e-6, 1e6] + [5.0, 1.0, -3e7])
    values = data.original()
    assert_allclose(data.mean * data.scale + data.center, values.mean(axis=0), rtol=1e-14)
    assert_allclose(
        data.covariance * np.outer(data.scale, data.scale), np.cov(values.T), rtol=1e-10
    )
    assert_array_equal(np.log2(data.scale) % 1, 0)
    assert data.log_jacobian == pytest.approx(-40 * np.log(data.scale).sum())


def test_weights_of_one_are_no_weights():
    for weight in (None, np.ones(40), [1] * 40, [True] * 40):
        data = read(A, sample_weight=weight)
        assert data.weight.shape == (0,)
        assert data.fingerprint == read(A).fingerprint


def test_weights_are_copied_and_counted():
    weight = np.linspace(0.5, 2, 40)
    data = read(FRAME, sample_weight=weight)
    assert data.total_weight == weight.sum()
    weight[:] = -1
    assert data.weight.min() == 0.5
    assert data.fingerprint != read(FRAME).fingerprint


@pytest.mark.parametrize(
    ("weight", "fragments"),
    [
        (np.r_[np.ones(17), -1, np.ones(22)], ["negative", "row 17"]),
        (np.r_[np.ones(17), np.nan, np.ones(22)], ["missing", "row 17"]),
        ([None, *[1.0] * 39], ["missing", "row 0"]),
        (pd.array([1, None, *[1] * 38], dtype="Int64"), ["missing", "row 1"]),
        (np.r_[np.ones(17), np.inf, np.ones(22)], ["infinite", "row 17"]),
        (np.zeros(40), ["all weights are 0"]),
        (np.ones(39), [r"\(39,\)", "40 rows"]),
        (np.ones((40, 1)), [r"\(40, 1\)", "40 rows"]),
        (2.0, [r"\(\)"]),
        ("abc", [r"\(\)"]),
        ([*[1] * 3, "1", *[1] * 36], ["text", "row"]),
        (np.ones(40) * 1j, ["complex", "row 0"]),
        ([[1, 2], *[1] * 39], ["40 numbers"]),
        (np.full(40, 1 / 40), ["sum to 1", "frequencies", "rescaled"]),
        (np.full(40, 1e-3), ["sum to 0.04", "rescaled"]),
        (np.full(40, 1e308), ["sum to inf"]),
    ],
)
def test_bad_weights_are_refused(weight, fragments):
    with refused(errors.WeightError, "sample_weight", *fragments):
        read(A, sample_weight=weight)


def test_bad_weights_are_named_by_row_label():
    with refused(errors.WeightError, "row 'r2'"):
        read(pd.DataFrame({"a": range(4)}).set_axis(ROWS), sample_weight=[1, 1, -1, 1])
    with refused(errors.TooFewRowsError, "sample_weight", "only row 'r2'"):
        read(pd.DataFrame({"a": range(4)}).set_axis(ROWS), sample_weight=[0, 0, 5, 0])


def test_weights_in_another_order_than_the_rows_are_refused():
    frame = pd.DataFrame({"a": range(4)}).set_axis(ROWS)
    weight = pd.Series([1, 2, 3, 4], index=ROWS)
    assert list(read(frame, sample_weight=weight).weight) == [1, 2, 3, 4]
    with refused(errors.WeightError, "sample_weight", "row labels", "reindex"):
        read(frame, sample_weight=weight[::-1])


@pytest.mark.parametrize(
    "weight", [np.full(40, 4e306), np.r_[np.ones(20), 10.0 ** np.linspace(-300, -1, 20)]]
)
def test_extreme_weights_give_numbers(weight):
    data = read(A, sample_weight=weight)
    assert np.isfinite(data.x).all()
    assert np.isfinite(data.covariance).all()


def test_rows_of_weight_zero_stay():
    weight = np.ones(40)
    weight[3] = 0
    data = read(with_cell(1e9, 3), sample_weight=weight)
    absent = read(np.delete(A, 3, axis=0))
    assert data.n == 40
    assert data.total_weight == 39
    assert_array_equal(data.scale, absent.scale)
    assert_array_equal(data.center, absent.center)
    assert_array_equal(np.delete(data.x, 3, axis=0), absent.x)
    assert_allclose(data.covariance, absent.covariance, rtol=1e-13, atol=1e-15)


# Laws


def tables(max_rows=12, max_columns=4):
    """Tables of numbers with three digits, whose columns all vary."""
    cell = st.integers(-999, 999)
    size = st.tuples(st.integers(3, max_rows), st.integers(1, max_columns))
    table = size.flatmap(lambda shape: arrays(np.float64, shape, elements=cell))
    return table.filter(lambda X: bool((np.ptp(X, axis=0) > 0).all()))


def quiet(X, **options):
    """Read, whatever ties there are: the tables are small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.DataWarning)
        return read(X, **options)


@given(tables(), st.data())
def test_weights_are_frequencies(X, draw):
    n = len(X)
    times = np.array(draw.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=n, max_size=n)))
    repeated = np.repeat(X, times, axis=0)
    if len(repeated) < 2 or (np.ptp(repeated, axis=0) == 0).any():
        return
    weighted, plain = quiet(X, sample_weight=times), quiet(repeated)
    assert weighted.total_weight == plain.total_weight
    assert_array_equal(weighted.scale, plain.scale)
    assert_array_equal(weighted.center, plain.center)
    assert_array_equal(np.repeat(weighted.x, times, axis=0), plain.x)
    assert_allclose(weighted.mean, plain.mean, rtol=1e-12, atol=1e-13)
    assert_allclose(weighted.covariance, plain.covariance, rtol=1e-12, atol=1e-13)


@given(tables(), st.sampled_from([None, "VVI", "EII"]))
def test_anchoring_can_be_undone(X, letters):
    data = quiet(X, family=None if letters is None else Covariance(letters))
    back = data.x * data.scale + data.center
    assert_allclose(back, X, rtol=1e-12, atol=1e-9 * np.abs(X).max())
    covariance = np.cov(X.T).reshape(data.d, data.d)
    theta = Parameters(np.ones(1), X.mean(axis=0)[None], covariance[None])
    anchored = data.to_anchored(theta)
    assert_allclose(anchored.mean[0], data.mean, atol=1e-12)
    assert_allclose(anchored.covariance[0], data.covariance, atol=1e-11)
    again = data.to_data_units(anchored)
    assert_array_equal(again.covariance, theta.covariance)  # powers of two
    assert_allclose(again.mean, theta.mean, rtol=1e-13, atol=1e-10)
    assert_array_equal(again.weight, theta.weight)


@given(tables())
def test_units_of_another_family_change_no_digit(X):
    """A nested family is searched in its own units: those that it would be read in."""
    one, other = (quiet(X, family=Covariance(letters)) for letters in ("VVI", "EII"))
    for there, here in ((one, other), (other, one)):
        found = there.rescaled(here.scale)
        for name in ("x", "scale", "mean", "covariance"):
            assert_array_equal(getattr(found, name), getattr(here, name))
        assert found.rescaled(here.scale) is found
    p = Parameters(np.ones(1), one.mean[None], one.covariance[None])
    moved = times(p, one.scale / other.scale)
    assert_array_equal(moved.mean[0], other.mean)
    assert_array_equal(moved.covariance[0], other.covariance)


@given(tables(), st.sampled_from([1e-8, 2.0**-20, 1.0, 1e8]), st.sampled_from([0.0, 1e4, 1e8]))
def test_units_and_offsets_move_nothing(X, scale, offset):
    data, plain = quiet((X + offset) * scale), quiet(X)
    factor = data.scale / plain.scale / scale
    held = np.spacing(2 * offset + 1000.0) / plain.scale
    assert (np.abs(data.x * factor - plain.x) <= 4 * held + 1e-14 * np.abs(plain.x).max()).all()


@given(tables(), st.randoms(use_true_random=False))
def test_columns_permuted_permute(X, random):
    order = list(range(X.shape[1]))
    random.shuffle(order)
    data, plain = quiet(X[:, order]), quiet(X)
    for field in ("x", "center", "scale", "mean"):
        assert_array_equal(getattr(data, field), getattr(plain, field)[..., order])
    assert_allclose(data.covariance, plain.covariance[np.ix_(order, order)], rtol=1e-14, atol=1e-15)


@given(tables(), st.randoms(use_true_random=False))
def test_rows_permuted_permute(X, random):
    order = list(range(len(X)))
    random.shuffle(order)
    data, plain = quiet(X[order]), quiet(X)
    assert_array_equal(data.x, plain.x[order])
    assert_allclose(data.covariance, plain.covariance, rtol=1e-12, atol=1e-14)


@settings(max_examples=30)
@given(tables(), st.sampled_from(["array", "Fortran", "frame", "integers", "xarray"]))
def test_data_are_never_changed_nor_shared(X, kind):
    X = {
        "array": lambda: X,
        "Fortran": lambda: np.asfortranarray(X),
        "frame": lambda: pd.DataFrame(X),
        "integers": lambda: X.astype(np.int64) + 2**55,
        "xarray": lambda: xr.DataArray(X),
    }[kind]()
    before = X.copy()
    weight = np.linspace(0, 2, len(X))
    if (np.ptp(np.asarray(X)[1:], axis=0) == 0).any():
        return
    data = quiet(X, sample_weight=weight, family=DIAGONAL)
    assert_array_equal(np.asarray(X), np.asarray(before))
    assert_array_equal(weight, np.linspace(0, 2, len(X)))
    for kept in (data.x, data.values, data.original()):
        assert not np.shares_memory(kept, np.asarray(X))


def test_read_only_memory_is_enough():
    X = A.copy()
    X.flags.writeable = False
    assert_array_equal(read(X, family=FULL).original(), A)


def test_the_fingerprint_is_of_values_names_and_weights():
    plain = read(FRAME).fingerprint
    assert plain.startswith("sha256:")
    assert len(plain) == len("sha256:") + 64
    assert plain == read(FRAME[["a", "b", "c"]].copy()).fingerprint
    others = [
        read(FRAME.rename(columns={"a": "A"})),
        read(FRAME[["b", "a", "c"]]),
        read(FRAME[::-1]),
        read(FRAME + 1e-15),
        read(FRAME, sample_weight=np.full(40, 2.0)),
    ]
    assert len({plain, *(data.fingerprint for data in others)}) == 6
    assert read([0.0, 1.0]).fingerprint == read([-0.0, 1.0]).fingerprint
    with warned("precision-loss"):
        one = read(np.array([2**60, 2**60 + 1, 2**60 + 2])).fingerprint
    with warned("precision-loss"):
        two = read(np.array([2**60, 2**60 + 1, 2**60 + 3])).fingerprint
    assert one != two


# New data (C05, C06)


def test_new_data_are_aligned_by_name():
    values, index = read_like(FRAME[["c", "a", "b"]].iloc[5:9], ["a", "b", "c"])
    assert_array_equal(values, A[5:9])
    assert list(index) == [5, 6, 7, 8]
    assert_array_equal(read_like(polars(FRAME[["b", "c", "a"]]), ("a", "b", "c"))[0], A)


@pytest.mark.parametrize("X", [A, A.tolist(), pd.DataFrame(A), xr.DataArray(A)])
def test_new_data_without_names_go_by_position(X):
    assert_array_equal(read_like(X, ["a", "b", "c"])[0], A)


def test_one_row_and_constant_columns_can_be_scored():
    assert_array_equal(read_like([[1, 2]], ["a", "b"])[0], [[1.0, 2.0]])
    assert_array_equal(read_like(pd.DataFrame({"a": [1, 1]}), ["a"])[0], [[1.0], [1.0]])
    assert_array_equal(read_like([1e308, -1e308], ["a"])[0], [[1e308], [-1e308]])


def test_new_data_with_other_columns_are_refused():
    with refused(errors.ColumnNameError, "'c' missing", "'z' unexpected", "'a', 'b', 'c'"):
        read_like(FRAME.rename(columns={"c": "z"}), ["a", "b", "c"])
    with refused(errors.ColumnNameError, "'species' unexpected"):
        read_like(FRAME.assign(species="setosa"), ["a", "b", "c"])
    with refused(errors.ColumnNameError, "several", "'a'"):
        read_like(FRAME.set_axis(["a", "b", "a"], axis=1), ["a", "b"])
    with refused(errors.ShapeError, "2 columns", "3", "'a', 'b', 'c'"):
        read_like(A[:, :2], ["a", "b", "c"])
    with refused(errors.ShapeError, "1 column,", "reshape"):
        read_like(A[0], ["a", "b", "c"])


def test_new_data_that_are_not_numbers_are_refused():
    with refused(errors.MissingValueError, "row 17, column 'b'"):
        read_like(with_cell(np.nan), ["a", "b", "c"])
    with refused(errors.InfiniteValueError, "row 17, column 'b'"):
        read_like(with_cell(np.inf), ["a", "b", "c"])
    with refused(errors.NonNumericError, "column 'b'", "'u'"):
        read_like(FRAME.assign(b="u"), ["a", "b", "c"])
    with refused(errors.EmptyDataError, "no rows"):
        read_like(FRAME[:0], ["a", "b", "c"])
