"""`make docs`: write docs/floors.md and docs/floors.svg."""

from tests.helpers import ROOT
from tests.house.page import page
from tests.house.picture import picture

if __name__ == "__main__":
    (ROOT / "docs" / "floors.md").write_text(page(), "utf-8")
    (ROOT / "docs" / "floors.svg").write_text(picture(), "utf-8")
