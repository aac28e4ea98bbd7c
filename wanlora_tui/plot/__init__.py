"""Curves of runs, drawn in braille: from named series of numbers to the cells of a terminal, and the widget that zooms,
pans and reads them."""
