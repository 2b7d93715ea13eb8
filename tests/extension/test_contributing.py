"""`CONTRIBUTING.md` shows lines of the files beside this one, which the tests run."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = sorted(HERE.glob("my_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_part_is_a_file_of_at_most_60_lines_that_the_page_links(file):
    assert len(file.read_text().splitlines()) <= 60
    assert f"]({file.relative_to(ROOT)})" in PAGE


def test_what_the_page_quotes_stands_in_those_files():
    quoted = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    texts = [file.read_text() for file in FILES]
    assert quoted and all(any(lines in text for text in texts) for lines in quoted)


def test_what_the_page_links_is_there_and_has_the_table_that_it_names():
    for words, path in re.findall(r"\[([^]]+)\]\(([^)]+)\)", PAGE):
        target = ROOT / path
        assert target.exists(), path
        assert not words.isupper() or re.search(rf"^{words}\b", target.read_text(), re.MULTILINE), words
