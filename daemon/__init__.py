"""Queues jobs, launches and adopts trainers, tails their events and publishes them. Knows nothing of torch or
textual."""
