"""What experiments solve themselves is what libraries find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn.functional import cross_entropy

from headwise.lens.trials.dependencies import TOKENS, probed
from headwise.theory.attention_svm import AttentionSVM, solved


def test_the_machine_is_scikit_learns() -> None:
    """Its constraints as points of the weights' space, each with its opposite, so that the plane goes through 0."""
    svm = pytest.importorskip("sklearn.svm", reason="scikit-learn is not installed")
    problems = AttentionSVM(problems=2, texts=3, tokens=3, dim=6).made(torch.Generator().manual_seed(0))
    chosen = problems.gains.argmax(-1)
    found = solved(problems, chosen)
    for place in range(2):
        rows = []
        for text in range(3):
            best = problems.tokens[place, text, chosen[place, text]]
            for token in range(3):
                if token != chosen[place, text]:
                    apart = best - problems.tokens[place, text, token]
                    rows.append(torch.outer(apart, problems.queries[place, text]).flatten())
        points = torch.stack(rows).numpy()
        machine = svm.SVC(kernel="linear", C=1e8, tol=1e-8)
        machine.fit(np.concatenate((points, -points)), [1] * len(points) + [-1] * len(points))
        torch.testing.assert_close(found[place].flatten(), torch.tensor(machine.coef_[0]), atol=1e-4, rtol=1e-3)


def test_the_probe_is_at_the_minimum_that_scipy_finds() -> None:
    chance = torch.Generator().manual_seed(0)
    known = torch.randn(12, TOKENS, TOKENS, 3, generator=chance)
    where = torch.randint(TOKENS, (12, TOKENS), generator=chance)
    where[where == torch.arange(TOKENS)] = -1
    hidden = torch.eye(TOKENS, dtype=torch.bool)

    def loss(weights: np.ndarray) -> float:
        scores = (known.double() @ torch.tensor(weights)).masked_fill(hidden, -1e9)
        return float(cross_entropy(scores.flatten(0, 1), where.flatten(), ignore_index=-1))

    own = probed(known, where, torch.eye(3)).double().numpy()
    best = minimize(loss, np.zeros(3), tol=1e-8)
    assert loss(own) < best.fun + 1e-4 and loss(own) < loss(np.zeros(3))
