"""Trains one job: clips -> latents -> noise, timestep, expert -> prediction -> loss -> gradient -> checkpoint, sample, event."""
