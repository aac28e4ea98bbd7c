"""How the wizard lies on terminals of every size; the classes are those of the screen's breakpoints."""

LAYOUT = """
WizardScreen #wizard-title { height: 1; padding: 0 1; background: $primary 20%; text-style: bold; }
WizardScreen #middle { height: 1fr; }
WizardScreen #steps {
    width: 30; height: 1fr; border: none; border-right: solid $primary 40%; padding: 1 0; display: none;
    background: transparent;
}
WizardScreen.-wide #steps { display: block; }
WizardScreen #pane { width: 1fr; height: 1fr; }
/* as high as ever: a line that grows would lay out the whole form anew at each key */
WizardScreen #forecast-line { height: 2; padding: 0 1; background: $boost; }
WizardScreen .-old { color: $text-muted; text-style: italic; }
WizardScreen #help-area { height: 5; border-top: solid $primary 60%; border-title-color: $primary; padding: 0 1; }
WizardScreen.-tall #help-area { height: 6; }
WizardScreen #help-text { height: auto; }
WizardScreen #nav { height: 1; padding: 0 1; }
WizardScreen #nav Button { min-width: 0; width: 14; }
WizardScreen #nav-state { width: 1fr; content-align: center middle; color: $text-muted; }
WizardScreen #nav-state.-found { color: $text-warning; }
/* short and narrow terminals: what one fills in and what was found come before the help */
WizardScreen.-low #help-area, WizardScreen.-tiny #help-area { display: none; }
WizardScreen.-low #forecast-line { height: 1; }
WizardScreen.-low StepPane, WizardScreen.-tiny StepPane { overflow-y: auto; }
/* one scrolls, not one within the other: what has got the focus may stay out of sight in two */
WizardScreen.-low CaptionsPane #caption-form, WizardScreen.-tiny CaptionsPane #caption-form { max-height: 1000; }
WizardScreen.-tiny #wizard-title, WizardScreen.-tiny #forecast-line, WizardScreen.-tiny Footer { display: none; }
WizardScreen.-cramped #nav { padding: 0; }
WizardScreen.-cramped #nav-state { width: auto; }
WizardScreen.-cramped #nav Button { width: 1fr; }
/* the control and its note under the label */
WizardScreen.-cramped FieldInput > Horizontal {
    layout: grid; grid-size: 2; grid-columns: 1fr auto; grid-rows: auto; height: auto;
}
WizardScreen.-cramped FieldInput .field-label { width: 1fr; column-span: 2; }
WizardScreen.-cramped FieldInput .field-control { width: 1fr; max-width: 100%; }
/* the panels over the form, which gets all columns: a note is read whole */
WizardScreen.-cramped SettingsPane > Horizontal, WizardScreen.-tight SettingsPane > Horizontal { layout: vertical; }
WizardScreen.-cramped SettingsPane #panels { width: 1fr; height: 2; }
WizardScreen.-tight SettingsPane #panels { width: 1fr; height: 3; }
WizardScreen.-cramped SettingsPane #form, WizardScreen.-tight SettingsPane #form { padding-left: 0; }
WizardScreen.-low ReviewPane #forecast { max-height: 2; }
WizardScreen.-low.-cramped ReviewPane #forecast { max-height: 1; }
WizardScreen.-tiny ReviewPane #forecast { display: none; }
WizardScreen.-low ReviewPane #path-note, WizardScreen.-tiny ReviewPane #path-note { display: none; }
WizardScreen.-low ReviewPane #path-note.problem { display: block; }
WizardScreen.-tiny ReviewPane #path-note.problem { display: block; }
WizardScreen.-tiny ReviewPane ContentSwitcher { min-height: 2; }
"""
