"""Files are read with care and written whole."""

import os

import pytest

from chexzero.common.errors import UserError
from chexzero.common.files import atomic_path, inside, read_json, read_table, safe_name, write_json


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
    assert safe_name("pt-imp") == "pt-imp"
    for bad in ("", "..", "a/b", "-x", "a b"):
        with pytest.raises(UserError):
            safe_name(bad)
