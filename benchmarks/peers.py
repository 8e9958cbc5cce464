"""scikit-learn's and mclust's EM, one iteration or a whole fit, from given parameters."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from benchmarks.problems import Problem


class Fit(NamedTuple):
    """A whole fit: how long, how many passes over the data, and where it ended."""

    seconds: float
    passes: int
    loglik: float


class Sklearn:
    """scikit-learn's GaussianMixture at the parameters of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.x = problem.x
        p = problem.parameters
        diagonal = np.ascontiguousarray(np.diagonal(p.covariance, axis1=1, axis2=2))
        covariance, root = {
            "full": (p.covariance, np.swapaxes(p.whitening, 1, 2)),
            "tied": (p.covariance[0], p.whitening[0].T),
            "diag": (diagonal, diagonal**-0.5),
            "spherical": (diagonal[:, 0], diagonal[:, 0] ** -0.5),
        }[problem.structure]
        precision = (
            root @ np.swapaxes(root, -1, -2) if root.ndim > 1 and root.shape[-1] == p.d else root
        )
        if problem.structure in ("diag", "spherical"):
            precision = 1.0 / covariance
        self.start = {
            "n_components": p.k,
            "covariance_type": problem.structure,
            "weights_init": p.weight,
            "means_init": p.mean,
            "precisions_init": precision,
            "reg_covar": 0.0,
        }
        self.peer = GaussianMixture(**self.start)
        self.here = (p.weight, p.mean, covariance, np.ascontiguousarray(root))
        self._go_back()

    def _go_back(self) -> None:
        peer = self.peer
        peer.weights_, peer.means_, peer.covariances_, peer.precisions_cholesky_ = self.here

    def loglik(self) -> float:
        """Return the log-likelihood at the parameters."""
        return float(self.peer._e_step(self.x)[0]) * len(self.x)

    def next_loglik(self) -> float:
        """Return the log-likelihood after one iteration."""
        self.peer._m_step(self.x, self.peer._e_step(self.x)[1])
        value = self.loglik()
        self._go_back()
        return value

    def iteration(self) -> None:
        """Make one E-step and one M-step, and go back to the same parameters."""
        self.peer._m_step(self.x, self.peer._e_step(self.x)[1])
        self._go_back()

    def fit(self, tol: float, max_iter: int = 100_000) -> Fit:
        """Return a whole fit from the same parameters."""
        peer = GaussianMixture(**self.start, tol=tol, max_iter=max_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            began = time.perf_counter()
            peer.fit(self.x)
            took = time.perf_counter() - began
        return Fit(took, peer.n_iter_ + 1, float(peer.score(self.x)) * len(self.x))


class Mclust:
    """R's mclust in a process of its own, asked by lines; a context manager."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("mclust.R")
        self.process = subprocess.Popen(
            ["Rscript", "--vanilla", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.version = self._answer()

    @staticmethod
    def is_installed() -> bool:
        """Return whether there is an R that has mclust."""
        if shutil.which("Rscript") is None:
            return False
        asked = ["Rscript", "--vanilla", "-e", "library(mclust)"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def _answer(self, question: str = "") -> str:
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert stdin
        assert stdout
        assert stderr
        if question:
            stdin.write(question + "\n")
            stdin.flush()
        answer = stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"R ended: {stderr.read().strip()[-500:]}")
        return answer

    def load(self, problem: Problem) -> float:
        """Send data and parameters; return the log-likelihood there."""
        p = problem.parameters
        parts = (problem.x.T, p.weight, p.mean, np.swapaxes(p.covariance, 1, 2))
        with tempfile.NamedTemporaryFile() as file:
            for part in parts:  # R's arrays have their first index fastest, ours their last
                np.ascontiguousarray(part).tofile(file)
            file.flush()
            shape = " ".join(map(str, problem.size))
            return float(self._answer(f"load {file.name} {shape} {problem.letters}"))

    def next_loglik(self) -> float:
        """Return the log-likelihood after one iteration."""
        return float(self._answer("next"))

    def seconds(self, calls: int) -> float:
        """Return how long so many iterations take."""
        return float(self._answer(f"time {calls}"))

    def fit(self, tol: float) -> Fit:
        """Return a whole fit from the parameters."""
        seconds, passes, loglik = self._answer(f"fit {tol}").split()
        return Fit(float(seconds), int(float(passes)) + 1, float(loglik))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.communicate()
