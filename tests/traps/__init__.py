"""Which ways to a derivative PyTorch gets right, operation by operation: the functions, and how they are judged."""
