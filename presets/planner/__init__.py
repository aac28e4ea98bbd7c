"""From a job and a machine to a memory plan, with what it takes in bytes and seconds. No torch."""
