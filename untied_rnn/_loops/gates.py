"""What a recurrent layer does at one timestep with its projections: all in which such layers differ."""

from typing import ClassVar

from keras import ops

from untied_rnn._types import Tensor, Tensors


class Gates:
    """What a layer does at one timestep with its two projections, element by element.

    Those are `p = x_t W_t + b_t` and `q = h_{t-1} U_t + c_t`, `(batch, parts * units)`; `h` is the first of
    the states.
    """

    parts: ClassVar[int]
    only_sum: ClassVar[bool]  # whether `p` and `q` count only as `p + q`
    residuals: ClassVar[int] = 0  # number of tensors, of the shape of a state, that `backward` needs
    biases: int = 1  # 2 if there is also a `c`
    has_backward: bool

    def project_state(self, p: Tensor, h: Tensor, kernel: Tensor, dropout_mask: Tensor | None) -> Tensor:
        """`h U`."""
        return project(h, kernel, dropout_mask)

    def forward(self, p: Tensor, q: Tensor, before: Tensors) -> tuple[Tensors, Tensors]:
        """The states after the timestep, and the residuals."""
        raise NotImplementedError  # each subclass has its own

    def backward(
        self, d_after: Tensors, residuals: Tensors, before: Tensors, after: Tensors
    ) -> tuple[Tensor, Tensor, Tensors]:
        """`dL/dp`, `dL/dq`, and `dL/dbefore` as far as it does not come through `q` (0 if not at all)."""
        raise NotImplementedError  # each subclass has its own


def project(x: Tensor, kernel: Tensor, dropout_mask: Tensor | None) -> Tensor:
    """`x W`, or `(x * d) W` for each part of `W` and its dropout mask `d`."""
    if dropout_mask is None:
        return ops.matmul(x, kernel)
    kernels = ops.split(kernel, dropout_mask.shape[0], axis=-1)
    parts = [ops.matmul(x * d, k) for d, k in zip(ops.unstack(dropout_mask), kernels, strict=True)]
    return ops.concatenate(parts, axis=-1)


def project_backward(
    d_product: Tensor, x: Tensor, kernel: Tensor, dropout_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of `project` to `x` and `W`."""
    if dropout_mask is None:
        return ops.matmul(d_product, ops.transpose(kernel)), ops.matmul(ops.transpose(x), d_product)
    n = dropout_mask.shape[0]
    parts = zip(
        ops.split(d_product, n, axis=-1),
        ops.split(kernel, n, axis=-1),
        ops.unstack(dropout_mask),
        strict=True,
    )
    d_x, d_kernel = zip(
        *((ops.matmul(d, ops.transpose(k)) * m, ops.matmul(ops.transpose(x * m), d)) for d, k, m in parts),
        strict=True,
    )
    return sum(d_x), ops.concatenate(d_kernel, axis=-1)
