"""The job being made, without any screen: its values, its steps, and how it is kept."""
