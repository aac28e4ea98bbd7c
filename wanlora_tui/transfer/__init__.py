"""Files of runs and jobs on their way between two machines: listed, read, checked and written, one request after the
other over one channel."""
