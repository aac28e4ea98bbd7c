"""The wizard that makes a job file."""

from wanlora_tui.screens.wizard.screen import WizardScreen

__all__ = ["WizardScreen"]
