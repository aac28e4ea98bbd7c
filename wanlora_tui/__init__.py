"""The `wanlora` command and its terminal screens. Holds no state of its own: it renders events and the job being
edited."""
