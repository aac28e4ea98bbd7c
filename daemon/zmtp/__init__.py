"""The serving side of ZeroMQ's protocol, with everything that a client can make it hold counted."""
