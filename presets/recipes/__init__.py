"""What the guide advises, as data, and a complete job made from it."""
