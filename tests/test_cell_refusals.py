"""Cells that `UntiedRNN` refuses, each with an error that says why."""

import keras
import numpy as np
import pytest
from autodiff import to_numpy
from cases import B, I, T, U
from example_cells import stacked

from untied_rnn import UntiedRNN


@keras.saving.register_keras_serializable(package="tests")
class WithLayer(keras.Layer):
    """A cell with another layer acting on its state."""

    state_size = U

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.inner = {
            "normalization": keras.layers.BatchNormalization,
            "loss": lambda: keras.layers.ActivityRegularization(0.1),
        }[kind]()

    def build(self, input_shape):
        self.inner.build((None, U))

    def call(self, inputs, states, training=False):
        state = self.inner(states[0], **({} if self.kind == "loss" else {"training": training}))
        return state, [state]


@pytest.mark.parametrize(
    ("kind", "message"), [("normalization", "changes '.*moving_mean"), ("loss", "adds no losses")]
)
@pytest.mark.parametrize("unroll", [True, False])
def test_cells_with_effects_are_refused_where_these_would_be_lost(kind, message, unroll, rng):
    layer = UntiedRNN(WithLayer(kind), timesteps=T, unroll=unroll)
    x = rng.normal(size=(B, T, I)).astype("float32")
    with pytest.raises(NotImplementedError, match=message):
        layer(x, training=True)
    if kind != "loss":  # the other does nothing else at inference
        np.testing.assert_allclose(to_numpy(layer(x))[0], 0, atol=1e-6)


class Returning(keras.layers.Layer):
    """A cell that returns what `results` makes of its state."""

    state_size = U

    def __init__(self, results):
        super().__init__()
        self.results = results

    def call(self, inputs, states):
        return self.results(states[0])


@pytest.mark.parametrize(
    ("results", "received"),
    [
        (lambda h: h, rf"Received: a `\w+` of the shapes \[\({U},\)\] from cell=<Returning"),
        (lambda h: [h], rf"Received: a `list` of the shapes \[\({U},\)\]"),
        (lambda h: (h, [h, h]), rf"Received: states of the shapes \[\({U},\), \({U},\)\]"),
        (lambda h: (h, []), r"Received: states of the shapes \[\]"),
        (lambda h: (h, [h[:, :1]]), r"Received: states of the shapes \[\(1,\)\]"),
    ],
    ids=["no states", "a list of one", "a state too many", "no state", "a state of another shape"],
)
def test_cells_must_return_an_output_and_their_states(results, received):
    with pytest.raises(ValueError, match=rf"returns its output and its states.*\({U},\)\].*{received}"):
        UntiedRNN(Returning(results))(keras.Input((T, I)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: UntiedRNN("lstm"), TypeError, "`cell` must be a `keras.Layer` with `state_size`.*'lstm'"),
        (lambda: UntiedRNN(keras.layers.Dense(3)), TypeError, "with `state_size`.*Dense"),
        (lambda: UntiedRNN(keras.layers.LSTMCell), TypeError, "`cell` must be"),
        (lambda: UntiedRNN(keras.layers.LSTM(3)), TypeError, "one timestep.*from_tied.*whole layer"),
        (lambda: UntiedRNN(UntiedRNN(keras.layers.LSTMCell(3))), TypeError, "whole layer"),
        (lambda: UntiedRNN(keras.layers.ConvLSTM2D(2, 3).cell), ValueError, "is known before.*-1"),
        (lambda: UntiedRNN.from_tied(keras.layers.GRU(3), 4), ValueError, "built"),
        (
            lambda: UntiedRNN(keras.layers.GRUCell(3))(keras.Input((4, 2)), initial_state=keras.Input((4,))),
            ValueError,
            r"\(None, 3\)\].*\(None, 4\)",
        ),
    ],
)
def test_wrong_cells(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_built_cells_are_refused():
    for cell in (keras.layers.LSTMCell(3), stacked()):
        cell.build((None, 2))
        with pytest.raises(ValueError, match="from_tied"):
            UntiedRNN(cell)
