"""Sharings, and arguments for them, that no layer could work with."""

import pytest
from cases import U

from untied_rnn import UntiedDense, UntiedSimpleRNN
from untied_rnn.sharing import Basis, Blocks, Listed, LowRank, Periodic

FAMILY = {"simple": UntiedSimpleRNN, "dense": UntiedDense}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Blocks(0), ValueError, "`size` must be a positive integer"),
        (lambda: Blocks(1.5), TypeError, "`size` must be a positive integer"),
        (lambda: Periodic(-1), ValueError, "`period` must be a positive integer"),
        (lambda: Periodic(True), TypeError, "`period` must be a positive integer"),
        (lambda: Listed([0, 2]), ValueError, "every weight set from 0"),
        (lambda: Listed([]), ValueError, "every weight set from 0"),
        (lambda: Listed([0, -1]), ValueError, "integers from 0"),
        (lambda: Listed([0, 1.0]), TypeError, "list of integers"),
        (lambda: Listed("01"), TypeError, "list of integers"),
        (lambda: Listed(3), TypeError, "list of integers"),
        (lambda: LowRank(-1), ValueError, "`rank` must be an integer from 0"),
        (lambda: LowRank(1.0), TypeError, "`rank` must be an integer from 0"),
        (lambda: LowRank(1, LowRank(1)), TypeError, "which timesteps share a deviation"),
        (lambda: Basis(0), ValueError, "`size` must be a positive integer"),
        (lambda: Basis(2, "sine"), ValueError, "`kind` must be one of 'spline', 'fourier', or a function"),
    ],
)
def test_wrong_sharings(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"sharing": Listed([0, 1]), "timesteps": 3},
            ValueError,
            "one number of timesteps, such as `Listed`",
        ),
        (
            {"kernel_sharing": Listed([0, 1]), "bias_sharing": Listed([0, 1, 1])},
            ValueError,
            r"Received: sharings for \[2, 3\] timesteps",
        ),
        ({"sharing": Blocks(2), "timesteps": "7"}, TypeError, "`timesteps` must be"),
        ({"sharing": 7}, TypeError, r"Expected a sharing, such as `untied_rnn.sharing.Blocks\(7\)`"),
        ({"sharing": "blocks"}, TypeError, "Expected a sharing"),
        ({"sharing": {"kernel": "tied"}}, TypeError, "one sharing"),
    ],
)
@pytest.mark.parametrize("name", ["simple", "dense"])
def test_wrong_arguments(name, options, error, message):
    with pytest.raises(error, match=message):
        FAMILY[name](U, **options)
