"""What a comparison says: as a table, in a sentence, and as text for a terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayesgmm.data.units import with_unit
from bayesgmm.errors import ArgumentError
from bayesgmm.labels import AMBIGUOUS

SIDES = ("mle", "post")


def to_frame(comparison: xr.Dataset) -> pd.DataFrame:
    """Return a comparison as a tidy table, one row per parameter, indexed by label."""
    refuse_other(comparison)
    frame = comparison.to_dataframe().reset_index(drop=True).set_index("label")
    frame.attrs = {name: comparison.attrs[name] for name in ("ci_prob", "ci_kind")}
    first = ["variable", "cluster", "feature", "feature_bis"]
    first += ["unit"] if "unit" in frame else []
    return frame[first + [name for name in frame if name not in first]]


def refuse_other(comparison: Any) -> None:
    """Refuse what did not come from `compare`."""
    if not isinstance(comparison, xr.Dataset) or "post_name" not in comparison.attrs:
        what = type(comparison).__name__
        raise ArgumentError("comparison", f"must come from compare, which this {what} does not")


def hidden_rows(comparison: xr.Dataset) -> NDArray[np.bool_]:
    """Say which rows are of single components whose labels are too ambiguous to compare them."""
    is_refused = bool(comparison.attrs["refused"])
    return is_refused & (comparison["cluster"].to_numpy() >= 0)


def headline(comparison: xr.Dataset) -> str:
    """Return one sentence: whether the two fits agree, and whether both can be relied on."""
    attrs = comparison.attrs
    hidden = hidden_rows(comparison)
    shown = comparison.isel(parameter=~hidden)
    total, agreed = shown.sizes["parameter"], int(shown["agree"].sum())
    what = "quantities without labels" if hidden.any() else "parameters"
    who = f"{attrs['mle_name']} and {attrs['post_name']}"
    text = f"{who[0].upper()}{who[1:]} agree on "
    text += f"all {total} {what}" if agreed == total else f"{agreed} of {total} {what}"
    z, ratio = np.abs(shown["z"].to_numpy()), shown["sd_ratio"].to_numpy()
    if np.isfinite(z).any() and np.isfinite(ratio).any():
        text += (
            f" (largest |z| {np.nanmax(z):.2f}, sd ratio {np.nanmin(ratio):.2f} to "
            f"{np.nanmax(ratio):.2f})"
        )
    if hidden.any():
        share = f"{attrs['ambiguous_labels']:.1%}"
        text += f"; single components are not compared: {share} of draws have ambiguous labels"
    bad = [
        f"the verdict on the {attrs[f'{side}_name']} is '{verdict(comparison, side)['status']}'"
        for side in SIDES
        if verdict(comparison, side)["status"] != "ok"
    ]
    return text + (f"; but {' and '.join(bad)}" if bad else "") + "."


def verdict(comparison: xr.Dataset, side: str) -> dict[str, Any]:
    """Return the verdict on one of the fits, ``side`` "mle" or "post": status and checks."""
    found: dict[str, Any] = json.loads(comparison.attrs[f"{side}_verdict"])
    return found


def failed_checks(comparison: xr.Dataset, side: str) -> list[dict[str, str]]:
    """Return the checks of a verdict that are not ok, worst first."""
    checks = verdict(comparison, side)["checks"]
    bad = [check for check in checks if check["status"] != "ok"]
    return sorted(bad, key=lambda check: ("fail", "warn").index(check["status"]))


def facts(comparison: xr.Dataset) -> dict[str, str]:
    """Return log-likelihoods, criteria and LOO in words, each with what its sign means."""
    a = comparison.attrs
    found = {
        f"log-likelihood of the {a['mle_name']}": f"{a['loglik']:.2f}",
        f"log-likelihood of the {a['post_name']}": (
            f"mean {a['loglik_mean']:.2f}, sd {a['loglik_sd']:.2f}"
        ),
    }
    if a["mle_estimate"] == "mle" and np.isfinite(a["n_params"]):
        found[f"log-likelihood of the {a['post_name']}"] += (
            f" ({a['loglik'] - a['loglik_mean']:.2f} below the maximum; about half the number of "
            f"parameters, {a['n_params'] / 2:g}, is usual)"
        )
    for name in ("aic", "bic", "icl"):
        if np.isfinite(a[name]):
            found[name.upper()] = f"{a[name]:.2f} ({a['criteria_sign']})"
    if np.isfinite(a["elpd_loo"]):
        found["LOO"] = (
            f"elpd {a['elpd_loo']:.2f}, standard error {a['elpd_loo_se']:.2f} (larger is better); "
            f"p_loo {a['p_loo']:.1f}; {a['pareto_k_note']}"
        )
    found[f"standard errors of the {a['mle_name']}"] = a["se_method"]
    if a["ambiguous_labels"] > 0.0 or a["alignment"] != "pivot":
        found[f"labels of the {a['post_name']}"] = (
            f"aligned by {a['alignment']}; ambiguous in {a['ambiguous_labels']:.1%} of the draws "
            f"(margin below {AMBIGUOUS})"
        )
    return found | {"prior": a["prior_note"]}


def format_number(value: float, unit: float) -> str:
    """Return a number with the digits that matter: two of ``unit``, its standard error or sd."""
    if not np.isfinite(value):
        return "–"
    if not (np.isfinite(unit) and unit > 0):
        return f"{value:.4g}"
    decimals = 1 - int(np.floor(np.log10(unit)))
    if abs(value) < 1e7 and decimals <= 6:
        return f"{value:.{max(decimals, 0)}f}"
    if value == 0:
        return "0"
    digits = decimals + int(np.floor(np.log10(abs(value))))
    return f"{value:.{min(max(digits, 2), 16)}e}"


def format_rows(comparison: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of the table that people read."""
    level = f"{100 * comparison.attrs['ci_prob']:g} %"
    header = ["parameter", "estimate", f"{level} Wald", "mean", f"{level} ETI"]
    header += ["z", "sd ratio", "overlap", "R-hat", "ESS bulk", "ESS tail", "agree"]
    cells = []
    records = to_frame(comparison).reset_index().to_dict("records")
    for row, is_hidden in zip(records, hidden_rows(comparison), strict=True):
        unit = row["se"] if np.isfinite(row["se"]) else row["sd"]

        def interval(kind: str, row: dict[Any, Any] = row, unit: float = unit) -> str:
            ends = (row[f"{kind}_lower"], row[f"{kind}_upper"])
            if np.isnan(ends).all():
                return "–"
            return " to ".join(format_number(end, unit) for end in ends)

        line = [
            with_unit(row["label"], row.get("unit", "")),
            format_number(row["estimate"], unit),
            interval("wald"),
        ]
        line += [format_number(row["mean"], unit), interval("eti")]
        line += [format_number(row[name], 0.1) for name in ("z", "sd_ratio", "overlap")]
        line += [format_number(row["r_hat"], 0.01)]
        line += [format_number(row[name], 10.0) for name in ("ess_bulk", "ess_tail")]
        cells.append([*line, "–" if is_hidden else "yes" if row["agree"] else "no"])
    return header, cells


def format_table(comparison: xr.Dataset, *, width: int = 132) -> str:
    """Return a comparison as plain text for a terminal.

    Parameters
    ----------
    comparison : Dataset
        From `compare`.
    width : int
        Columns of the terminal.

    Returns
    -------
    str
        The headline, log-likelihoods, criteria and verdicts; the table; and the reasons.
    """
    refuse_other(comparison)
    above = [headline(comparison), ""]
    above += [f"{name}: {text}" for name, text in facts(comparison).items()]
    for side in SIDES:
        status = verdict(comparison, side)["status"]
        above.append(f"verdict on the {comparison.attrs[f'{side}_name']}: {status}")
        for check in failed_checks(comparison, side):
            above.append("  {status}: {code}: {evidence}. {advice}".format(**check))
    header, cells = format_rows(comparison)
    table = Table(box=SIMPLE)
    shown = [i for i, name in enumerate(header) if name not in ("overlap", "ESS tail")]
    for i in shown:
        table.add_column(Text(header[i]), justify="right" if i else "left")
    for line in cells:
        table.add_row(*(Text(line[i]) for i in shown))
    below = [f"{label}: {text}" for label, text in reasons_of(comparison).items()]
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    for part in (Text("\n".join(above)), table, Text("\n".join(below))):
        console.print(part)
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).rstrip() + "\n"


def reasons_of(comparison: xr.Dataset) -> dict[str, str]:
    """Return label -> reason of the parameters that differ; one for all that are not compared."""
    hidden = hidden_rows(comparison)
    labels, reasons = comparison["label"].to_numpy(), comparison["reason"].to_numpy()
    found = {}
    if hidden.any():
        found[f"all {hidden.sum()} of single components"] = str(reasons[hidden][0])
    pairs = zip(labels[~hidden], reasons[~hidden], strict=True)
    return found | {str(label): str(text) for label, text in pairs if text}
