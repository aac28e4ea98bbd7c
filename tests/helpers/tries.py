"""How much hypothesis tries: a little, and the same each time, with every run of the tests; `make torture` asks for
more. Never by the clock. Imported by the conftest of each folder that uses it."""

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("usual", derandomize=True, max_examples=50, stateful_step_count=60, **COMMON)
settings.register_profile("torture", max_examples=1000, stateful_step_count=80, **COMMON)
settings.load_profile("usual")
