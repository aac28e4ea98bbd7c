"""What the commands share."""

from wanlora_tui.commands.common import print_table


def test_a_table_is_aligned_and_nothing_of_it_is_cut(capsys):
    folder = "/data/" + "long/" * 60
    print_table([("ID", "NAME", "RUN FOLDER"), ("1", "軌道", folder), ("12", "[red]orbit", "/runs")])
    head, wide, plain = capsys.readouterr().out.splitlines()
    assert head == "ID  NAME        RUN FOLDER"
    assert wide == f"1   軌道        {folder}"  # each of its signs takes two columns
    assert plain == "12  [red]orbit  /runs"  # names are no markup
