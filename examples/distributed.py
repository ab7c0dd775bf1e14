"""Trains an untied RNN on several processes: each computes the gradient of its own part of every batch.

    python examples/distributed.py --processes 2    # starts two processes on this machine's CPU
    python examples/distributed.py --processes 1    # one process, for comparison: the same weights

On several machines, start one process on each. HOST is the machine of process 0, PORT a free port there:

    python examples/distributed.py --processes 2 --process 0 --address HOST:PORT
    python examples/distributed.py --processes 2 --process 1 --address HOST:PORT

Process 0 prints the results and writes the weights to `--out`.
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

os.environ["KERAS_BACKEND"] = "jax"  # the backend on which `keras.distribution` spans processes

import keras
import numpy as np
from digits import Arrays, load_digits

from untied_rnn import UntiedSimpleRNN


def own_parts(x: np.ndarray, y: np.ndarray, args: argparse.Namespace) -> Iterator[tuple]:
    """An endless stream of this process's parts of the batches, which are the same however many share them.

    Keras takes what each process yields for its part and puts the parts together, in the order of the
    processes. It can cut up a `tf.data.Dataset` by itself, but no arrays: hence `auto_shard_dataset=False`.
    """
    rng = np.random.default_rng(args.seed)
    size = args.batch // args.processes
    while True:
        order = rng.permutation(len(x))
        for start in range(0, len(x) - args.batch + 1, args.batch):
            own = order[start + size * args.process :][:size]
            yield x[own], y[own]


def train(digits: Arrays, args: argparse.Namespace) -> None:
    if args.processes > 1:
        keras.distribution.initialize(args.address, args.processes, args.process)
    if args.batch % (devices := len(keras.distribution.list_devices())):
        sys.exit(f"error: --batch {args.batch} cannot be divided among {devices} devices")
    keras.utils.set_random_seed(args.seed)  # the same weights everywhere, or JAX ends with an error
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))

    # A loop, because it compiles fast. In it the processes exchange gradients at every timestep; with
    # `unroll=True` all at once, which is better over a network.
    rows = keras.Input((28, 28))
    model = keras.Model(rows, keras.layers.Dense(10)(UntiedSimpleRNN(50, unroll=False)(rows)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])

    x_train, y_train, x_test, y_test = digits
    steps, test_steps = len(x_train) // args.batch, len(x_test) // args.batch
    verbose = 2 if args.process == 0 else 0
    batches = own_parts(x_train, y_train, args)
    model.fit(batches, epochs=args.epochs, steps_per_epoch=steps, shuffle=False, verbose=verbose)
    test_loss, accuracy = model.evaluate(own_parts(x_test, y_test, args), steps=test_steps, verbose=0)

    # With a distribution set, saving makes new variables on the devices of all processes, whose values JAX
    # compares between the processes: one that saves alone would wait for the others forever.
    keras.distribution.set_distribution(None)
    if args.process == 0:
        model.save_weights(args.out)
        tested = test_steps * args.batch
        print(f"test loss {test_loss:.4f}, accuracy {accuracy:.4f} ({tested} digits); weights in {args.out}")


def start_all(processes: int) -> int:
    """Runs this script once for each process; returns the exit status."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    command = [sys.executable, *sys.argv, "--address", address, "--process"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}  # or all would take the same GPU
    started = [subprocess.Popen([*command, str(i)], env=environment) for i in range(processes)]
    try:
        while None in (codes := [process.poll() for process in started]) and not any(codes):
            time.sleep(0.1)
    finally:  # where one has failed, the others would wait for it for minutes
        for process in started:
            process.kill()
    return 1 if any(codes) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="how many in all (default 2)")
    parser.add_argument("--process", type=int, help="number of this one, from 0")
    parser.add_argument("--address", help="HOST:PORT at which process 0 listens")
    parser.add_argument("--data", default="sample", help="sample, mnist or a .npz file in Keras's layout")
    parser.add_argument("--batch", type=int, default=128, help="digits in a batch, of all processes together")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/distributed.weights.h5"))
    args = parser.parse_args()
    if min(args.processes, args.batch, args.epochs) < 1:
        sys.exit("error: --processes, --batch and --epochs must be positive")
    if (args.process is None) != (args.address is None):
        sys.exit("error: --process and --address must be given together")
    if not 0 <= (args.process or 0) < args.processes:
        sys.exit(f"error: --process must be from 0 to {args.processes - 1}, received {args.process}")
    if args.batch % args.processes:
        sys.exit(f"error: --batch {args.batch} cannot be divided among {args.processes} processes")
    if not args.out.name.endswith(".weights.h5"):
        sys.exit(f"error: --out must end with .weights.h5, received {args.out}")
    return args


def main() -> None:
    args = parse()
    digits = load_digits(args.data)
    if args.batch > (smallest := min(map(len, digits))):
        sys.exit(f"error: --batch {args.batch} is larger than the data: {smallest} digits")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: cannot use --out {args.out}: {error}")
    if args.processes > 1 and args.process is None:
        sys.exit(start_all(args.processes))
    args.process = args.process or 0
    train(digits, args)


if __name__ == "__main__":
    main()
