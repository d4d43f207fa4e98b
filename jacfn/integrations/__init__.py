"""Other packages' solvers with Jacobians from jacfn (L5): a module for each package, imported only when asked for."""
