"""Searches the hidden size of an untied RNN, and how to train it, for MNIST digits read row by row.

    python examples/tune_hidden_size.py                                  # 5,000 real digits, no network
    python examples/tune_hidden_size.py --quick                          # under a minute
    python examples/tune_hidden_size.py --tuner hyperband --data mnist   # all 70,000
    python examples/tune_hidden_size.py --workers 2                      # two trials at a time

Trials see the training digits alone, a fifth of which validates them. Then the best one's model is trained
on all of them and tested. The same command resumes an interrupted search. Writes trials.csv, trials.png
and model.keras to `--directory`, beside keras-tuner's own files.

For several machines, run the same command on each (without --workers, with a --directory that all share):

    KERASTUNER_ORACLE_IP=10.0.0.1 KERASTUNER_ORACLE_PORT=8000 KERASTUNER_TUNER_ID=chief     python ...
    KERASTUNER_ORACLE_IP=10.0.0.1 KERASTUNER_ORACLE_PORT=8000 KERASTUNER_TUNER_ID=worker_1  python ...
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import keras
import keras_tuner
import numpy as np
import pandas as pd
from command_line import end_on_interrupt, fail, positive, replace, verbosity
from digits import Arrays, load_digits
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from untied_rnn.tuning import UntiedRNNHyperModel

# The model of `mnist_rows.py`, with which the best trial's is compared.
DEFAULT = {
    "units": 50,
    "num_layers": 1,
    "dropout": 0.0,
    "recurrent_dropout": 0.0,
    "learning_rate": 2e-3,
    "batch_size": 128,
}
RESTARTS = 3
TICKS = [0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999]


class CosineDecay(keras.callbacks.Callback):
    """Lets the learning rate fall to zero with half a cosine over all epochs, as many as there are."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.initial = float(self.model.optimizer.learning_rate)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        share = epoch / self.params["epochs"]
        self.model.optimizer.learning_rate = self.initial * (1 + np.cos(np.pi * share)) / 2


def hypermodel(seed: int, **ranges: Any) -> UntiedRNNHyperModel:
    return UntiedRNNHyperModel(
        timesteps=28,
        input_dim=28,
        num_classes=10,
        # Shortens the gradients of all timesteps together; the measured accuracies are of that.
        optimizer=keras.optimizers.Adam(clipnorm=1.0),
        recurrent_initializer="orthogonal",
        seed=seed,
        **ranges,
    )


def make_tuner(args: argparse.Namespace) -> keras_tuner.Tuner:
    options = {
        "hypermodel": hypermodel(args.seed, units=args.units),
        "objective": "val_accuracy",
        "seed": args.seed + 1,  # zero is no seed to keras-tuner
        "directory": args.directory.resolve().parent,
        "project_name": args.directory.resolve().name,
        "max_consecutive_failed_trials": 10,
    }
    if args.tuner == "hyperband":
        tuner = keras_tuner.Hyperband(max_epochs=args.epochs, **options)
        tuner.oracle.max_trials = args.max_trials
        return tuner
    tuners = {"random": keras_tuner.RandomSearch, "bayesian": keras_tuner.BayesianOptimization}
    return tuners[args.tuner](max_trials=args.max_trials or 12, **options)


def search(tuner: keras_tuner.Tuner, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
    held_out = len(x) // 5
    tuner.search(
        x[held_out:],
        y[held_out:],
        validation_data=(x[:held_out], y[:held_out]),
        validation_batch_size=400,
        epochs=epochs,
        callbacks=[CosineDecay()],
        verbose=2,
    )


def table(tuner: keras_tuner.Tuner, epochs: int) -> pd.DataFrame:
    """All trials, the best first, failed trials last."""
    rows = []
    for trial in tuner.oracle.get_best_trials(len(tuner.oracle.trials)):
        values = trial.hyperparameters.values
        rows.append(
            {
                "trial": trial.trial_id,
                "status": trial.status,
                "val_accuracy": trial.score,
                "epochs": values.get("tuner/epochs", epochs),
                **{name: value for name, value in values.items() if not name.startswith("tuner/")},
            }
        )
    trials = pd.DataFrame(rows)
    sizes = trials[["units", "num_layers"]].drop_duplicates()
    sizes["parameters"] = [
        hypermodel(0, **(DEFAULT | size)).build(keras_tuner.HyperParameters()).count_params()
        for size in sizes.astype(object).to_dict("records")
    ]
    return trials.merge(sizes, sort=False)


def pareto_front(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that are more accurate than all others with as few units or fewer."""
    done = trials.dropna(subset="val_accuracy")
    best = done.sort_values("val_accuracy").drop_duplicates("units", keep="last").sort_values("units")
    return best[best.val_accuracy > best.val_accuracy.cummax().shift(fill_value=-1)]


def draw(trials: pd.DataFrame, path: pathlib.Path) -> None:
    drawable = trials.assign(val_accuracy=trials.val_accuracy.clip(TICKS[0], TICKS[-1]))  # on a logit scale
    done, front = drawable.dropna(subset="val_accuracy"), pareto_front(drawable)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    sizes = 300 * done.parameters / done.parameters.max()
    points = axes.scatter(done.units, done.val_accuracy, s=sizes, c=done.epochs, alpha=0.6)
    axes.step(front.units, front.val_accuracy, "k-", where="post", label="Pareto front", zorder=0)
    axes.set(xlabel="hidden size (units)", ylabel="validation accuracy", title="Marker size: parameters")
    axes.set_yscale("logit")  # from 0.98 to 0.99 is as far as from 0.5 to 0.67: half the errors
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend()
    if done.epochs.nunique() > 1:
        figure.colorbar(points, label="epochs")
    figure.savefig(path, dpi=120)


def retrained(values: dict[str, Any], seed: int, x: np.ndarray, y: np.ndarray, epochs: int) -> keras.Model:
    """A model of these hyperparameters, trained on all training digits."""
    fixed, hp = hypermodel(seed, **values), keras_tuner.HyperParameters()
    model = fixed.build(hp)
    fixed.fit(hp, model, x, y, epochs=epochs, callbacks=[CosineDecay()], verbose=verbosity())
    return model


def report(args: argparse.Namespace, tuner: keras_tuner.Tuner, digits: Arrays) -> None:
    x_train, y_train, x_test, y_test = digits
    trials = table(tuner, args.epochs)
    replace(args.directory / "trials.csv", lambda path: trials.to_csv(path, index=False))
    if trials.val_accuracy.isna().all():
        sys.exit(f"error: no trial succeeded: see trial_*/trial.json in {args.directory}")
    print(f"\n{len(trials)} trials, the best of them:")
    print(trials.head(10).to_string(index=False, float_format="{:.4f}".format))
    replace(args.directory / "trials.png", lambda path: draw(trials, path))
    best = tuner.get_best_hyperparameters()[0]
    for name, values in (("default", DEFAULT), ("best trial's", {key: best[key] for key in DEFAULT})):
        model = retrained(values, args.seed, x_train, y_train, args.final_epochs or args.epochs)
        _, accuracy = model.evaluate(x_test, y_test, batch_size=1000, verbose=0)
        print(f"test accuracy of the {name} model {accuracy:.4f} ({len(x_test)} digits)")
    replace(args.directory / "model.keras", model.save)
    print(f"results in {args.directory}")


def start(role: str, address: dict[str, str], log: Any) -> subprocess.Popen:
    """This command once more, as keras-tuner's chief or a worker of it."""
    environment = os.environ | address | {"KERASTUNER_TUNER_ID": role}
    command = [sys.executable, *sys.argv]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, and its end of the pipe with it."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def distribute(args: argparse.Namespace) -> None:
    """Runs a chief, which hands out the trials, and workers; a worker that dies is replaced.

    The new one bears the name of the old one, to which the chief then gives its unfinished trial.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    logs = {f"worker_{i}": args.directory / f"worker_{i}.log" for i in range(args.workers)}

    def worker(role: str) -> subprocess.Popen:
        with logs[role].open("a") as log:
            return start(role, address, log)

    chief = start("chief", address, None)
    workers = {role: worker(role) for role in logs}
    restarts = dict.fromkeys(workers, 0)
    try:
        while chief.poll() is None:
            time.sleep(0.2)
            for role, process in workers.items():
                if process.poll() not in (None, 0):
                    if restarts[role] == RESTARTS:
                        sys.exit(f"error: {role} died {RESTARTS + 1} times: see {logs[role]}")
                    restarts[role] += 1
                    process.communicate()  # closes its pipe
                    workers[role] = worker(role)
    finally:
        for process in (chief, *workers.values()):
            process.terminate()
            process.communicate()
    if chief.returncode:
        sys.exit(f"error: the chief ended with {chief.returncode}: go on with the same command")


def int_range(text: str) -> Any:
    """`LOW:HIGH:STEP`, its bounds included, `A,B,C` or a number."""
    try:
        if ":" in text:
            low, high, step = (positive(part) for part in text.split(":"))
            if low <= high:
                return range(low, high + 1, step)
        else:
            return [positive(part) for part in text.split(",")]
    except (argparse.ArgumentTypeError, ValueError):
        pass
    raise argparse.ArgumentTypeError(f"expected LOW:HIGH:STEP or A,B,C, received {text}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="sample", help="sample, mnist or a .npz file in Keras's layout")
    parser.add_argument("--tuner", choices=["random", "bayesian", "hyperband"], default="random")
    parser.add_argument("--max-trials", type=positive, help="default 12; with --tuner hyperband as it plans")
    parser.add_argument(
        "--units", type=int_range, default="16:256:16", help="LOW:HIGH:STEP or A,B,C (default 16:256:16)"
    )
    parser.add_argument("--epochs", type=positive, default=15, help="epochs of a trial, at most (default 15)")
    parser.add_argument("--final-epochs", type=positive, help="epochs of the last training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("out/tune_hidden_size"))
    parser.add_argument("--workers", type=positive, help="run so many trials at a time, each in a process")
    parser.add_argument("--quick", action="store_true", help="three trials of 3 epochs")
    args = parser.parse_args()
    if args.quick:
        args.max_trials, args.epochs = 3, 3
    return args


def main() -> None:
    args = parse()
    try:
        run(args)
    except (OSError, json.JSONDecodeError) as error:  # a file that a kill has torn is no JSON
        fail(f"cannot use --directory {args.directory}", error)


def run(args: argparse.Namespace) -> None:
    role = os.environ.get("KERASTUNER_TUNER_ID")
    if args.workers and role:
        threading.Thread(target=end_with_parent, daemon=True).start()
    digits = load_digits(args.data)
    if role in (None, "chief"):
        check_settings(args)
    if args.workers and role is None:
        return distribute(args)
    # A single process has the chief's name, so that each can resume what the other has begun.
    os.environ.setdefault("KERASTUNER_TUNER_ID", "chief")
    tuner = make_tuner(args)
    search(tuner, *digits[:2], args.epochs)
    if os.environ["KERASTUNER_TUNER_ID"] == "chief":
        report(args, tuner, digits)


def check_settings(args: argparse.Namespace) -> None:
    """Refuses to go on with another search than the one in the directory."""
    settings = args.directory / "settings.json"
    search = {name: str(getattr(args, name)) for name in ("data", "tuner", "units", "epochs", "seed")}
    args.directory.mkdir(parents=True, exist_ok=True)
    if settings.exists() and (before := json.loads(settings.read_text())) != search:
        sys.exit(f"error: {args.directory} holds the search {before}, received {search}")
    replace(settings, lambda path: path.write_text(json.dumps(search)))


if __name__ == "__main__":
    end_on_interrupt("interrupted: go on with the same command")
    main()
