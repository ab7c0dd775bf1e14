"""Trains an untied RNN to read MNIST digits row by row: 28 timesteps of 28 pixels.

    python examples/mnist_rows.py                           # 5,000 real digits, no network
    python examples/mnist_rows.py --data mnist              # all 70,000
    python examples/mnist_rows.py --recipe notebook --data mnist
    python examples/mnist_rows.py --recipe best --data mnist    # two wider layers, distorted digits
    python examples/mnist_rows.py --quick                   # few epochs, also of the others

Writes metrics.csv, learning_curve.png and model.keras to `--out`.
"""

import argparse
import functools
import pathlib
import warnings
from collections.abc import Callable
from typing import NamedTuple

import keras
from command_line import end_on_interrupt, positive, start
from digit_batches import BATCH_SIZE, batches
from digits import load_digits
from robust_run import robust_run

from untied_rnn import UntiedSimpleRNN


def modern_recipe(units: int, epochs: int, steps: int, layers: int = 1, rate: float = 2e-3) -> keras.Model:
    """Glorot and orthogonal matrices, Adam with a cosine schedule."""
    rows = states = keras.Input((28, 28))
    for i in range(layers):  # all but the last hand on the states of all timesteps
        states = UntiedSimpleRNN(units, return_sequences=i < layers - 1)(states)
    model = keras.Model(rows, keras.layers.Dense(10)(states))
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    # `clipnorm` shortens the gradients of all timesteps together; the measured accuracies are of that.
    return compiled(model, keras.optimizers.Adam(schedule, clipnorm=1.0), steps)


def notebook_recipe(units: int, epochs: int, steps: int) -> keras.Model:
    """The TensorFlow 1 notebook: all weights from N(0, 1), outputs V_t computed but untrained."""
    normal = functools.partial(keras.initializers.RandomNormal, stddev=1.0)
    initializers = {f"{part}_initializer": normal() for part in ("kernel", "recurrent", "output")}
    rows = keras.Input((28, 28))
    layer = UntiedSimpleRNN(units, output_units=10, use_bias=False, return_state=True, **initializers)
    _, state = layer(rows)
    warnings.filterwarnings("ignore", "Gradients do not exist for variables")  # the outputs' weights
    logits = keras.layers.Dense(10, kernel_initializer=normal(), bias_initializer=normal())(state)
    model = keras.Model(rows, logits)
    optimizer = keras.optimizers.RMSprop(0.001, rho=0.9, epsilon=1e-10)
    optimizer.build(model.trainable_variables)
    for variable in optimizer.variables:
        if "velocity" in variable.path:  # TensorFlow 1 starts the mean square at one, Keras at zero
            variable.assign(keras.ops.ones_like(variable))
    return compiled(model, optimizer, steps)


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer, steps: int) -> keras.Model:
    if not optimizer.built:  # now rather than in the first step, so that a trial save is a full one
        optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A step this small takes no longer than a turn through Python, so as many as divide an epoch run at once.
    steps_at_once = max(n for n in range(1, 51) if steps % n == 0)
    model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=steps_at_once)
    return model


class Recipe(NamedTuple):
    build: Callable[[int, int, int], keras.Model]  # of units, epochs and steps of an epoch
    units: int
    epochs: int
    quick_epochs: int
    distort: bool = False
    digits: int | None = None  # to train on, if not all
    steps: int | None = None  # of an epoch, if not one for each batch


best_recipe = functools.partial(modern_recipe, layers=2, rate=1e-3)
RECIPES = {
    "modern": Recipe(modern_recipe, units=50, epochs=30, quick_epochs=10),
    "notebook": Recipe(notebook_recipe, 50, epochs=130, quick_epochs=5, digits=55_000, steps=1000),
    "best": Recipe(best_recipe, units=128, epochs=40, quick_epochs=10, distort=True),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="sample", help="sample, mnist or a .npz file in Keras's layout")
    parser.add_argument("--recipe", choices=list(RECIPES), default="modern")
    parser.add_argument("--units", type=positive, help="hidden units (default 50; --recipe best 128)")
    parser.add_argument("--epochs", type=positive, help="default 30; best 40; notebook 130 of 1,000 steps")
    parser.add_argument("--quick", action="store_true", help="few epochs: a look at it, not its accuracy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/mnist_rows"))
    parser.add_argument("--resume", action="store_true", help="resume an interrupted run in --out")
    parser.add_argument("--overlay", type=pathlib.Path, help="CSV (step,loss,batch_accuracy) to draw as well")
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    recipe = RECIPES[args.recipe]
    args.units = args.units or recipe.units
    args.epochs = args.epochs or (recipe.quick_epochs if args.quick else recipe.epochs)
    x_train, y_train, x_test, y_test = load_digits(args.data)
    x_train, y_train = x_train[: recipe.digits], y_train[: recipe.digits]
    steps = recipe.steps or len(x_train) // BATCH_SIZE
    keras.utils.set_random_seed(args.seed)
    build = functools.partial(recipe.build, args.units, args.epochs, steps)
    stream = functools.partial(batches, x_train, y_train, args.seed, distort=recipe.distort)
    settings = {name: getattr(args, name) for name in ("data", "recipe", "seed", "units", "epochs")}
    test = x_test, y_test
    robust_run(build, stream, test, args.epochs, steps, settings, args.out, args.resume, args.overlay)


def main() -> None:
    start(train, parse())


if __name__ == "__main__":
    end_on_interrupt("interrupted: go on with the same command and --resume")
    main()
