"""Files are checked when read and written atomically."""

import os

import pytest

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, ends_a_line, inside, read_json, read_table, safe_name, write_json


def test_a_path_must_stay_inside_its_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    assert inside(root, "a/../b.png") == root / "b.png"
    for bad in ("../x", "/etc/passwd", "a/../../x", "out/x", "a\0b"):
        with pytest.raises(UserError):
            inside(root, bad)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "content, word",
    [
        (b"a,b\n1,2\n", "column"),
        ("a,caf\xe9\n".encode("latin-1"), "UTF-8"),
        (b"", "column"),
        (b"a,needed\n1,2\n1,2,3,4\n", "CSV"),
        (b"a,needed\n1,2,3\n1,2,3\n", "CSV"),
    ],
)
def test_a_damaged_table_is_one_clear_error(tmp_path, content, word):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=word):
        read_table(path, ["needed"])


def test_damaged_json_names_the_line(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"a": 1,\n oops}')
    with pytest.raises(UserError, match="line 2"):
        read_json(path)


def test_a_name_is_one_folder():
    for good in ("pt-imp", "a (2)", "x" * 128, "\u80f8" * 66 + "xx"):  # 66 letters of three bytes and two: 200
        assert safe_name(good) == good
    for bad in ("", "..", "a/b", "-x", "a b", "x" * 129, "\u80f8" * 66 + "xxx"):
        with pytest.raises(UserError):
            safe_name(bad)


@pytest.mark.parametrize(
    ("all_columns", "also", "kept"),
    [(True, None, "abc"), (False, None, "a"), (False, ["c", "d"], "ac"), (False, [], "a"), (True, ["c"], "ac")],
)
def test_a_table_keeps_the_columns_that_are_asked_for(tmp_path, all_columns, also, kept):
    """A table with a million reports stays small in memory; columns named in `also` are optional."""
    (tmp_path / "t.csv").write_text("a,b,c\n1,2,3\n")
    assert list(read_table(tmp_path / "t.csv", ["a"], all_columns=all_columns, also=also)) == list(kept)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["b", "x"], r"lacks the column x \(it has: a, b, b\)"),
        (["x", "a", "y"], r"lacks the columns x, y \("),
        (["a", "b"], "column b 2 times"),
    ],
)
def test_the_columns_that_are_missing_or_there_twice_are_named(tmp_path, columns, words):
    (tmp_path / "t.csv").write_text("a,b,b\n1,2,3\n")
    with pytest.raises(UserError, match=words):
        read_table(tmp_path / "t.csv", columns)
    assert read_table(tmp_path / "t.csv", ["a"])["a"].tolist() == ["1"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named_in_either_byte_order(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("\ufeffa,b\n1,2\n".encode(encoding))
    with pytest.raises(UserError, match="UTF-16"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(("text", "ends"), [("a\n", True), ("a\r", True), ("a", False), ("\na", False), ("", True)])
def test_the_last_byte_ends_a_line_or_does_not(tmp_path, text, ends):
    (tmp_path / "t").write_bytes(text.encode())
    assert ends_a_line(tmp_path / "t") is ends
