"""The layers that users make, and their bases: `layer`, then `recurrent`, then `affine`."""
