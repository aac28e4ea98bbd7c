"""Processes, and the trainers among them: start, watch, end."""
