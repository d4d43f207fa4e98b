"""The exceptions of jacfn (L0).

Argument errors derive from the built-in type that a reader expects *and* from ``RuntimeError``, which is what
``torch.func`` raises in the same place: code written for one keeps working with the other.
"""


class JacfnError(RuntimeError):
    """Base of every error that jacfn raises.

    Example:
        >>> import jacfn
        >>> issubclass(jacfn.JacfnError, RuntimeError)
        True
    """


class JacfnTypeError(JacfnError, TypeError):
    """An argument, a leaf or an output has a type or dtype that cannot be differentiated.

    Example:
        >>> import jacfn, torch
        >>> try:
        ...     jacfn.jac_rev(lambda n: 2 * n)(torch.tensor(3))
        ... except TypeError as error:
        ...     print(str(error).split(":")[0])
        argument 0
    """


class JacfnValueError(JacfnError, ValueError):
    """An argument has a value or a shape that does not fit.

    Example:
        >>> import jacfn, torch
        >>> try:
        ...     jacfn.jac_rev(torch.sin, chunk_size=0)(torch.ones(2))
        ... except ValueError as error:
        ...     print(str(error).split(",")[0])
        chunk_size must be a positive int or None
    """
