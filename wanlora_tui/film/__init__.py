"""The previews of a run as films on a terminal: which there are, decoded at the drawn size, timed, drawn in cells."""
