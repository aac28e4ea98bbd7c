"""How much is tried is set before the tests are read."""

import tests.helpers.tries  # noqa: F401
