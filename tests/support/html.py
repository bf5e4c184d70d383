"""HTML of reports: hostile text for it, and a parser that checks it."""

from html.parser import HTMLParser

EVIL = "127.0.0.1:9/evil"
HOSTILE = f"\"'><script>fetch('http://{EVIL}')</script><img src=//{EVIL}>"
_VOID = {"meta"}


class Page(HTMLParser):
    """Elements, which must be closed in their order, and visible text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.words, self.attributes = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self):
        return " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.open += [tag] * (tag not in _VOID)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
