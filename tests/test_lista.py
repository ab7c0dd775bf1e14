"""`examples/lista.py`: the algorithm, the network that it is unfolded into, and the script."""

import sys

import keras
import numpy as np
import pytest
from conftest import BACKEND, InThisProcess

pytest.importorskip("matplotlib", reason="matplotlib is in the extra `untied-rnn[examples]`")
pd = pytest.importorskip("pandas", reason="pandas is in the extra `untied-rnn[examples]`")
pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the examples are TensorFlow's; once is enough"
)

import lista  # noqa: E402 (what it needs is looked for first)
import lista_compare  # noqa: E402 (what it needs is looked for first)


@pytest.fixture
def main(monkeypatch):
    """The script as a function of its arguments."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lista.py", *map(str, arguments)])
        lista.main()

    return call


@pytest.mark.parametrize(("momentum", "steps"), [(False, 4000), (True, 600)])
def test_the_algorithm_solves_the_lasso(momentum, steps):
    """Where it ends the gradient is `-lam sign(x)` on the support, and nowhere larger than `lam`."""
    a, x = lista.dictionary(10, 20, seed=0), lista.sparse_codes(5, 20, [0])
    y = x @ a.T
    solution = lista.ista(a, y, 0.1, steps, momentum)[:, -1]
    gradient = (solution @ a.T - y) @ a
    assert 0 < np.count_nonzero(solution) < solution.size
    np.testing.assert_allclose(np.where(solution != 0, gradient, 0), -0.1 * np.sign(solution), atol=1e-6)
    assert np.abs(gradient).max() < 0.1 + 1e-6


def test_a_step_is_that_of_the_formula():
    a, y = lista.dictionary(3, 5, seed=1), np.array([[1.0, -2.0, 0.5]])
    size = 1 / (1.001 * np.linalg.svd(a)[1][0] ** 2)
    x, path = np.zeros(5), lista.ista(a, y, 0.3, 3)
    for t in range(3):
        z = x + size * a.T @ (y[0] - a @ x)
        x = np.array([np.sign(v) * max(abs(v) - size * 0.3, 0) for v in z])
        np.testing.assert_allclose(path[0, t], x, atol=1e-12)
    assert np.count_nonzero(x) in range(1, 5)


def test_the_momentum_is_that_of_the_paper():
    """Beck and Teboulle 2009: `z_1 = x_0`, `t_1 = 1`, so that the first two steps are ISTA's."""
    a, y = lista.dictionary(6, 9, seed=1), np.random.default_rng(0).normal(size=(2, 6))
    fista, plain = lista.ista(a, y, 0.1, 4, momentum=True), lista.ista(a, y, 0.1, 2)
    np.testing.assert_allclose(fista[:, :2], plain, atol=1e-12)
    t_2 = (1 + 5**0.5) / 2
    t_3 = (1 + (1 + 4 * t_2**2) ** 0.5) / 2
    z_3 = fista[:, 1] + (t_2 - 1) / t_3 * (fista[:, 1] - fista[:, 0])
    size = lista.step_size(a)
    x_3 = lista.soft(z_3 - size * (z_3 @ a.T - y) @ a, size * 0.1)
    np.testing.assert_allclose(fista[:, 2], x_3, atol=1e-12)


def test_the_network_is_the_algorithm_until_it_is_trained():
    a, x = lista.dictionary(20, 40, seed=0), lista.sparse_codes(6, 40, [2])
    y = x @ a.T
    model = lista.unfolded(a, 0.4, steps=7)
    np.testing.assert_allclose(model.predict(y, verbose=0), lista.ista(a, y, 0.4, 7), atol=1e-5)
    assert model.count_params() == 20 * 40 + 7 * (40 * 40 + 40)


def randomised(cell, a, steps, rng):
    """The unfolded network with other weights in each step than the algorithm's, and these by name."""
    model = lista.unfolded(a, 0.4, steps, cell)
    layer = model.get_layer("iteration")
    for variable in model.weights:
        variable.assign(variable + 0.1 * rng.random(variable.shape))
    return model, [layer.weights_at(t) for t in range(steps)]


@pytest.mark.parametrize("cell", lista.CELLS)
def test_each_cell_against_a_loop(cell, rng):
    a, y = lista.dictionary(6, 9, seed=0), rng.normal(size=(4, 6))
    model, weights = randomised(cell, a, 3, rng)
    path, x = model.predict(y, verbose=0), np.zeros((4, 9))
    for t, w in enumerate(weights):
        if lista.CELLS[cell][1] is lista.SoftThresholdCell:
            z = x @ w["kernel"] + y @ model.layers[1].get_weights()[0]
        else:
            z = x + w["size"] * (y - x @ w["dictionary"].T) @ w["kernel"]
        x = lista.soft(z, w["threshold"])
        np.testing.assert_allclose(path[:, t], x, atol=1e-5)
    assert not np.array_equal(weights[0]["threshold"], weights[1]["threshold"])
    same = np.array_equal(weights[0]["kernel"], weights[1]["kernel"])
    assert same == (cell in ("blocks", "tied", "tilista", "alista"))


@pytest.mark.parametrize(
    ("cell", "trained", "shapes"),
    [
        ("lista", {"projection", "kernel", "threshold"}, {"kernel": (3, 9, 9), "threshold": (3, 9)}),
        (
            "lowrank",
            {"projection", "kernel", "kernel_a", "kernel_b", "threshold"},
            {"kernel": (1, 9, 9), "kernel_a": (3, 9, 4), "kernel_b": (3, 4, 9), "threshold": (3, 9)},
        ),
        ("blocks", {"projection", "kernel", "threshold"}, {"kernel": (1, 9, 9), "threshold": (3, 9)}),
        ("cp", {"kernel", "size", "threshold"}, {"kernel": (3, 6, 9), "size": (3,), "threshold": (3,)}),
        ("tied", {"projection", "kernel", "threshold"}, {"kernel": (1, 9, 9), "threshold": (3, 9)}),
        ("tilista", {"kernel", "size", "threshold"}, {"kernel": (1, 6, 9), "size": (3,), "threshold": (3,)}),
        ("alista", {"size", "threshold"}, {"kernel": (1, 6, 9), "size": (3,), "threshold": (3,)}),
    ],
)
def test_training_changes_what_a_cell_trains_and_nothing_else(cell, trained, shapes, rng):
    a, codes = lista.dictionary(6, 9, seed=0), lista.sparse_codes(8, 9, [2])
    model = lista.unfolded(a, 0.4, 3, cell)
    layer = model.get_layer("iteration")
    variables = {variable.name: variable for variable in layer.weights}
    assert {name: tuple(variables[name].shape) for name in shapes} == shapes
    if "projection" in trained:
        variables["projection"] = model.layers[1].kernel
    assert len(variables) == len(model.weights)
    before = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables.items()}
    model.compile(keras.optimizers.SGD(0.1), lista.log_error(0.8))
    model.fit(codes @ a.T, codes, epochs=2, verbose=0)
    after = {name: keras.ops.convert_to_numpy(variable) for name, variable in variables.items()}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == trained


def test_the_other_networks_start_as_algorithms_too():
    a, x = lista.dictionary(20, 40, seed=0), lista.sparse_codes(6, 40, [2])
    y = x @ a.T
    for cell in ("lowrank", "blocks", "tied", "cp", "tilista"):
        path = lista.unfolded(a, 0.4, 7, cell).predict(y, verbose=0)
        np.testing.assert_allclose(path, lista.ista(a, y, 0.4, 7), atol=1e-5)


def test_the_analytic_weights_are_the_least_coherent_ones(rng):
    """Of all `w` with `w . a_i = 1`, the squares of the products with the other columns are smallest."""
    a = lista.dictionary(6, 9, seed=0)
    w = lista.analytic(a)
    np.testing.assert_allclose((w * a).sum(axis=0), 1)
    for _ in range(20):
        direction = rng.normal(size=w.shape)
        direction -= a * (direction * a).sum(axis=0)  # which keeps the products at 1
        assert np.linalg.norm(a.T @ (w + 0.01 * direction)) > np.linalg.norm(a.T @ w)


def test_a_negative_threshold_is_none():
    a = lista.dictionary(4, 4, seed=0)
    model, y = lista.unfolded(a, 0.4, steps=1), np.ones((1, 4))
    projection, (kernel, threshold) = (
        model.layers[1].get_weights()[0],
        model.get_layer("iteration").get_weights(),
    )
    model.get_layer("iteration").set_weights([kernel, -threshold])
    np.testing.assert_allclose(model.predict(y, verbose=0)[:, 0], y @ projection, atol=1e-6)


def test_the_loss_weights_the_logarithms_of_the_errors(rng):
    codes, path = rng.normal(size=(6, 5)), rng.normal(size=(6, 3, 5))
    expected = 0
    for t in range(3):
        error = ((path[:, t] - codes) ** 2).sum() / (codes**2).sum()
        expected += 0.8 ** (2 - t) * np.log(error)
    loss = keras.losses.get(lista.log_error(0.8))(keras.ops.array(codes), keras.ops.array(path))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    last = lista.nmse(codes, path)[-1]
    assert last == pytest.approx(10 * np.log10(error))
    assert float(lista.decibels(codes, path)) == pytest.approx(last, rel=1e-5)


def test_codes_are_sparse_and_fresh():
    codes = lista.sparse_codes(1000, 100, [0])
    assert np.count_nonzero(codes) / codes.size == pytest.approx(0.1, abs=0.005)
    assert codes[codes != 0].std() == pytest.approx(1, abs=0.03)
    a = lista.dictionary(10, 20, seed=0)
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), 1)
    batches, again = lista.FreshCodes(a, seed=0), lista.FreshCodes(a, seed=0)
    first, y = batches[3][1], batches[3][0]
    np.testing.assert_allclose(y, first @ a.T, atol=1e-5)
    np.testing.assert_array_equal(first, again[3][1])
    batches.on_epoch_end()
    for other in (again[4], batches[3], lista.FreshCodes(a, seed=1)[3]):
        assert not np.array_equal(first, other[1])


def test_resume_ends_at_the_same_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(lista, "STEPS_PER_EPOCH", 2)
    np.savez(tmp_path / "problem.npz", A=lista.dictionary(4, 6, 0), x_test=lista.sparse_codes(20, 6, [9]).T)

    def main(out, *options):
        data = ["--data", str(tmp_path / "problem.npz"), "--steps", "2", "--epochs", "3"]
        monkeypatch.setattr("sys.argv", ["", *data, "--out", str(tmp_path / out), *options])
        lista.main()

    def interrupt(callback, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt

    main("whole")
    with monkeypatch.context() as context:
        context.setattr(keras.callbacks.BackupAndRestore, "on_epoch_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main("stopped")
    assert (tmp_path / "stopped/backup.zip").exists()
    main("stopped", "--resume")
    for name in ("errors.csv", "errors.png"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "stopped/backup.zip").exists()


def test_training_beats_the_algorithm(main, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lista, "STEPS_PER_EPOCH", 300)
    data = tmp_path / "problem.npz"
    np.savez(data, A=lista.dictionary(8, 12, 0), x_test=lista.sparse_codes(300, 12, [9]).T)
    main("--data", data, "--steps", 4, "--epochs", 1, "--out", tmp_path / "out")
    errors = pd.read_csv(tmp_path / "out/errors.csv")
    assert list(errors) == ["step", "ISTA", "FISTA", "before training", "LISTA"]
    assert list(errors.step) == [1, 2, 3, 4]
    np.testing.assert_allclose(errors["before training"], errors.ISTA, atol=1e-3)
    assert errors.LISTA.iloc[-1] < errors.FISTA.iloc[-1] - 1
    assert f"error of LISTA {errors.LISTA.iloc[-1]:.2f} dB" in capsys.readouterr().out
    # Which another program reads back when it knows the cell.
    with np.load(data) as arrays:
        a, codes = arrays["A"], arrays["x_test"].T
    path = keras.saving.load_model(tmp_path / "out/model.keras", compile=False).predict(
        codes @ a.T, verbose=0
    )
    np.testing.assert_allclose(lista.nmse(codes, path), errors.LISTA, atol=1e-3)
    for picture in ("errors.png", "weights.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 5000


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "is no sparse coding problem"),
        ({"A": np.zeros((2, 3))}, "is no sparse coding problem"),
        ({"A": np.zeros((2, 3)), "x_test": np.zeros((4, 5))}, r"received (2, 3) and (4, 5)"),
    ],
)
def test_wrong_data_is_one_line(main, tmp_path, arrays, message):
    data = tmp_path / "problem.npz"
    if arrays is not None:
        np.savez(data, **arrays)
    with pytest.raises(SystemExit) as raised:
        main("--data", data, "--out", tmp_path / "out")
    assert message in raised.value.code
    assert "\n" not in raised.value.code
    assert not (tmp_path / "out").exists()


def test_the_comparison_takes_each_cells_best_rate_and_goes_on(tmp_path, monkeypatch, capsys):
    def errors(run):  # the best rate on held-out codes is the worst one on test codes
        return [{"parameters": 7, "held out": -run.rate, "test": run.seed + 1000 * run.rate}]

    def run_script():
        options = ["--seeds", 3, "--epochs", 2, "--out", tmp_path]
        monkeypatch.setattr(sys, "argv", ["lista_compare.py", *map(str, options)])
        lista_compare.main()
        return capsys.readouterr().out

    monkeypatch.setattr(lista_compare, "errors", errors)
    monkeypatch.setattr(lista_compare, "ProcessPoolExecutor", InThisProcess)
    assert run_script().count(", test ") == 7 * (len(lista_compare.RATES) + 2)
    results = pd.read_csv(tmp_path / "compare.csv")
    assert set(results[results.seed > 0].rate) == {max(lista_compare.RATES)}
    table = lista_compare.summary(results)
    assert set(table["error (dB)"]) == {1 + 1000 * max(lista_compare.RATES)}
    assert table["standard error"].to_numpy() == pytest.approx(3**-0.5)

    written = (tmp_path / "compare.csv").read_text()
    (tmp_path / "compare.csv").write_text("".join(written.splitlines(keepends=True)[:-1]))
    assert run_script().count(", test ") == 1
    assert (tmp_path / "compare.csv").read_text() == written
