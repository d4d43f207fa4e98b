"""The parts of the demonstration ``python -m jacfn``; nothing else imports them."""
