"""How the weight of a timestep comes from the parameters of a layer: what `sharing=` takes.

Timesteps may share whole weights (`Untied`, `Tied`, `Blocks`, `Periodic`, `Listed`), or have weights that
differ from each other by few parameters (`LowRank`, `Basis`). A class of your own says the same two things as
these: which parameters there are, and what the weight of a timestep is, given what it reads of them.
"""

from untied_rnn.sharing._base import Parameter, SetSharing, Sharing, SharingArgument, get, serialize
from untied_rnn.sharing._basis import Basis
from untied_rnn.sharing._low_rank import LowRank
from untied_rnn.sharing._sets import Blocks, Listed, Periodic, Tied, Untied

__all__ = [
    "Basis",
    "Blocks",
    "Listed",
    "LowRank",
    "Parameter",
    "Periodic",
    "SetSharing",
    "Sharing",
    "SharingArgument",
    "Tied",
    "Untied",
    "get",
    "serialize",
]
