"""Closed forms for parameters that enter their operations linearly (L2)."""
