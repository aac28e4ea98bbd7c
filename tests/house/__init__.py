"""The house as a page: docs/floors.md and its picture docs/floors.svg, made from the code by `make docs`.

What they show is read by tests.helpers.floors; what a room is allowed to import is decided in tests.test_floors.
"""
