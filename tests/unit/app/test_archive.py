import io
import json
import unicodedata
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.archive import Entry, to_safe_stem, to_unique_stems, write_archive
from app.schemas import FileProblem, Problem

NASTY = st.text(
    st.one_of(st.sampled_from(list('/\\.:<>"|?*~ \0\n\x1b\u202e\ud800COMNULprn1')), st.characters()), max_size=300
)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("cells.png", "cells"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\scan.tif", "scan"),
        ("a.b.c.tif", "a.b.c"),
        ("/", "image"),
        ("..", "image"),
        ("", "image"),
        (".png", "png"),
        ("a\nb\0c.png", "a_b_c"),
        ("nul.tif", "_nul"),
        ("COM1", "_COM1"),
        ("dots... .png", "dots"),
        ("x" * 500 + ".png", "x" * 150),
        ("é" * 100 + ".png", "é" * 75),
    ],
)
def test_a_name_keeps_what_is_safe(name: str, stem: str) -> None:
    assert to_safe_stem(name) == stem


@settings(deadline=None)
@given(NASTY)
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    stem = to_safe_stem(name)
    assert stem
    assert not set(stem) & set('/\\:<>"|?*\0')
    assert stem.isprintable()
    assert stem.strip(" .") == stem
    assert len(stem.encode()) <= 151


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["a.png", "A.tif", "a-2.png", "x/a.png", ""]), NASTY), max_size=12))
def test_no_two_results_share_a_name_even_where_capitals_do_not_count(names: list[str]) -> None:
    stems = to_unique_stems(names)
    assert len(stems) == len(names)
    assert len({unicodedata.normalize("NFC", stem.casefold()) for stem in stems}) == len(names)


def test_duplicates_are_numbered_and_the_first_keeps_its_name() -> None:
    assert to_unique_stems(["a.png", "a.tif", "A.png", "a-2.png", "b.png"]) == ["a", "a-2", "A-3", "a-2-2", "b"]


def test_thousands_of_names_alike_take_no_longer_than_others() -> None:
    stems = to_unique_stems(["x.png"] * 20_000)  # by a search from the start for each, a matter of minutes
    assert (stems[0], stems[-1], len(set(stems))) == ("x", "x-20000", 20_000)


def test_an_archive_holds_the_results_and_the_problems_and_no_date() -> None:
    problem = Problem(type="t", title="t", status=415, code="c", detail="ä", request_id="")
    problems = [FileProblem(file="x", index=1, problem=problem)]
    entries = [Entry("ä_mask.png", b"1", {"X-Quality": "ok"}), Entry("b_mask.png", b"2", {})]
    data = write_archive(entries, problems, {"X-Model": "größe"})
    assert data == write_archive(entries, problems, {"X-Model": "größe"})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["ä_mask.png", "b_mask.png", "errors.json"]
        assert archive.read("b_mask.png") == b"2"
        assert [entry.comment for entry in archive.infolist()] == [b"X-Quality=ok", b"", b""]
        assert archive.comment.decode() == "X-Model=größe"
        assert json.loads(archive.read("errors.json"))[0]["problem"]["detail"] == "ä"
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o644}


def test_without_problems_there_is_no_list_of_them() -> None:
    with zipfile.ZipFile(io.BytesIO(write_archive([Entry("a", b"1", {})], []))) as archive:
        assert archive.namelist() == ["a"]
