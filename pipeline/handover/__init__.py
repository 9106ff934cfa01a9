"""Other frameworks: what each of them trains on, token by token, and a run handed over to it."""
