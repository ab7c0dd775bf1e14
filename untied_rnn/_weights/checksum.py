"""A checksum beside stored weights, so that a damaged file is an error and never a wrong answer.

A `.keras` file is an archive, which notices a flipped bit; the HDF5 format of `.weights.h5` does not.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

KEY = "checksum"


def checksum(arrays: Mapping[str, Any]) -> np.uint32:
    """CRC-32 of all numbers, in the order of their names, with names, shapes and dtypes."""
    value = 0
    for key in sorted(arrays):
        array = np.ascontiguousarray(ops.convert_to_numpy(arrays[key]))
        value = zlib.crc32(f"{key} {array.shape} {array.dtype}".encode(), value)
        value = zlib.crc32(array.tobytes(), value)
    return np.uint32(value)


def verified(store: Any, owner: str) -> dict[str, np.ndarray]:
    """The arrays in `store`, checked against their checksum.

    Args:
        store: Mapping from names to arrays, as Keras hands it to `load_own_variables`. One without a
            checksum, as version 0.1.0 wrote, is taken as it is.
        owner: Name of the layer, for the message.

    Raises:
        ValueError: If the arrays do not match the checksum.
    """
    arrays = {key: store[key] for key in store.keys()}  # noqa: SIM118 (a store is no dictionary)
    expected = arrays.pop(KEY, None)
    if expected is not None and expected != (received := checksum(arrays)):
        raise ValueError(
            f"The stored weights of layer '{owner}' are damaged: expected checksum {expected}, received "
            f"weights with checksum {received}. Nothing was loaded into this layer."
        )
    return arrays
