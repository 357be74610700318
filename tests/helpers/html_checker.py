"""A parser that checks a self-contained HTML page."""

from html.parser import HTMLParser


class Checker(HTMLParser):
    """Checks that every tag is closed in order and that nothing is loaded from elsewhere."""

    VOID = {"meta", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "img", "iframe")
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
