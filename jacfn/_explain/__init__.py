"""What the transforms would do with a function, told before they do it (L3)."""
