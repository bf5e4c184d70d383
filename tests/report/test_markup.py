"""Markup: text is escaped wherever it is put into it."""

from mlxdist.report.markup import element, join, text

HOSTILE = "<a href=\"x\" title='y'>&"
ESCAPED = "&lt;a href=&quot;x&quot; title=&#x27;y&#x27;&gt;&amp;"


def test_text_of_others_is_escaped_once():
    assert text(HOSTILE) == ESCAPED
    assert element("p", HOSTILE, text(HOSTILE)) == f"<p>{ESCAPED}{ESCAPED}</p>"
    assert join([element("i"), HOSTILE]) == f"<i></i>{ESCAPED}"
    assert element("p", title=HOSTILE) == f'<p title="{ESCAPED}"></p>'


def test_control_characters_are_made_visible():
    assert text("a\x1b[2J\u202e") == "a\\x1b[2J\\u202e"


def test_attributes_have_hyphens():
    assert element("meta", http_equiv="x", cls="y") == '<meta http-equiv="x" class="y">'
