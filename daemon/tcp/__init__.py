"""The daemon's sockets for other machines: encrypted with CURVE, for clients whose keys are allowed, or not there."""
