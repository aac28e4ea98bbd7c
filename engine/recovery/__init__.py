"""`wanlora ara`: builds an accuracy recovery adapter."""
