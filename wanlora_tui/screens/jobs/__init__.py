"""All jobs: the list with what can be asked of each of them, the one under the cursor in detail, and how others come
into it."""

from wanlora_tui.screens.jobs.screen import JobsScreen as JobsScreen
from wanlora_tui.screens.jobs.table import JobTable as JobTable
