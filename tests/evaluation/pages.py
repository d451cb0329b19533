"""Reads a page as a browser would, and keeps what it loads and says. Not a test itself."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Every element that opens closes, in order; collects texts and what is loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]

    def handle_startendtag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
