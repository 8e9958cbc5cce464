"""A verdict is made of checks that say what was found, how bad it is, and what to do about it."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from typing import Literal

from bayesgmm.errors import PACKAGE, ArgumentError, BayesgmmWarning, PosteriorWarning

Status = Literal["ok", "warn", "fail"]
_STATUSES: tuple[Status, ...] = ("ok", "warn", "fail")  # in order of severity


@dataclass(frozen=True)
class Limit:
    """Where a diagnostic stops being ok, and where it stops being a mere warning.

    Parameters
    ----------
    ok, warn : float
        The last value of each status; beyond ``warn``, and NaN, fails.
    is_floor : bool
        Whether smaller is worse.
    """

    ok: float
    warn: float
    is_floor: bool = False

    def grade(self, value: float) -> Status:
        """Return the status of a value."""
        sign = -1.0 if self.is_floor else 1.0
        if sign * value <= sign * self.ok:
            return "ok"
        return "warn" if sign * value <= sign * self.warn else "fail"


@dataclass(frozen=True)
class Check:
    """One question that was asked about a fit.

    Parameters
    ----------
    code : str
        Stable identifier, e.g. ``"rhat"``.
    status : {"ok", "warn", "fail"}
    evidence : str
        What was found: the worst parameter and its number.
    advice : str
        What it means and what to do; empty where the status is ok.
    """

    code: str
    status: Status
    evidence: str
    advice: str = ""


@dataclass(frozen=True)
class Verdict:
    """All checks of a fit; the worst of them is the verdict.

    Parameters
    ----------
    checks : tuple of Check
    """

    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """``"ok"``, ``"warn"`` or ``"fail"``: that of the worst check."""
        return max((check.status for check in self.checks), key=_STATUSES.index, default="ok")

    @property
    def troubles(self) -> tuple[Check, ...]:
        """The checks that are not ok, failures first."""
        found = [check for check in self.checks if check.status != "ok"]
        return tuple(sorted(found, key=lambda check: -_STATUSES.index(check.status)))

    def __str__(self) -> str:
        if self.status == "ok":
            return f"ok: all {len(self.checks)} checks passed"
        lines = [
            f"  {check.status}  {check.code}: {check.evidence}. {check.advice}"
            for check in self.troubles
        ]
        count = f"{len(lines)} of {len(self.checks)} checks not passed"
        return "\n".join([f"{self.status}: {count}", *lines])

    def to_json(self) -> str:
        """Return ``{"status": ..., "checks": [{"code", "status", "evidence", "advice"}, ...]}``."""
        checks = [asdict(check) for check in self.checks]
        return json.dumps({"status": self.status, "checks": checks})

    @staticmethod
    def from_json(text: str) -> Verdict:
        """Return the verdict that `to_json` wrote.

        Raises
        ------
        ArgumentError
            If the text is not such a JSON object.
        """
        try:
            checks = tuple(Check(**check) for check in json.loads(text)["checks"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ArgumentError("text", f"not the JSON of a Verdict ({error})") from error
        for check in checks:
            if check.status not in _STATUSES:
                raise ArgumentError("text", f"{check.status!r} is not a status of a Check")
        return Verdict(checks)


def warn(
    verdict: Verdict, category: type[BayesgmmWarning], subject: tuple[str, str] | None = None
) -> None:
    """Emit one warning that lists what is not ok, or none if all is.

    Parameters
    ----------
    verdict : Verdict
    category : type
        `PosteriorWarning` (code ``posterior-not-good``) or `FitWarning` (``fit-not-good``).
    subject : (str, str), optional
        Another first word of the code, and what is not good in words.
    """
    if verdict.status == "ok":
        return
    is_posterior = issubclass(category, PosteriorWarning)
    code, what = subject or (("posterior", "posterior draws") if is_posterior else ("fit", "fit"))
    message = f"the {what} should not be relied on as found. {verdict}"
    warnings.warn(category(f"{code}-not-good", message), skip_file_prefixes=(PACKAGE,))
