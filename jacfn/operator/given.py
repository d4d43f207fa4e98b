"""What an operator is given and refers to (L3): to notice that it was changed since."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._torch import base_tensor, inside_transform, version


class Given:
    """The caller's tensors, and how often their memory had been changed in place when the operator was made.

    Nobody counts inside a transform, nor for tensors of inference mode.

    Attributes:
        arguments: those of the function; the others are what it returned.
    """

    def __init__(self, arguments: Sequence[Tensor] = (), value: Sequence[Tensor] = ()) -> None:
        self.arguments = tuple(arguments)
        counted = () if inside_transform() else (*self.arguments, *value)
        self._versions = [(x, version(x)) for x in counted]

    def sharing(self, memory: set[torch.UntypedStorage]) -> Given:
        """Those alone that share this memory."""
        fewer = Given()
        fewer._versions = [(x, then) for x, then in self._versions if base_tensor(x).untyped_storage() in memory]
        return fewer

    def check(self) -> None:
        """Refuse answers that would be neither those of then nor those of now."""
        if any(version(x) != then for x, then in self._versions):
            raise JacfnError(
                "a tensor that this operator refers to, an argument of fn or J.value, was changed in place after the "
                "operator was made: make the operator again, or give clones"
            )
