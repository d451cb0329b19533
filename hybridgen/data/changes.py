"""Whether the data are still those that a state was saved with: number of records, names and sizes of files.

A position counts records, so that after a change it no longer says which of them were seen. That is said when a run
goes on; it is no error, as data sets grow.
"""

from collections.abc import Iterable

from hybridgen.data.document_source import DocumentSource


def describe(sources: Iterable[DocumentSource]) -> dict[str, dict]:
    """What `changes` compares, by source; JSON-able. Files are [count, bytes, hash of names and sizes]."""
    return {source.name: {"records": source.records, "files": source.fingerprint} for source in sources}


def changes(sources: Iterable[DocumentSource], before: dict[str, dict]) -> list[str]:
    """What of the sources is not as it was, in a few words each; older states know nothing."""
    found = []
    for source in sources:
        was = before.get(source.name, {})
        records, files = was.get("records"), was.get("files")
        if None not in (records, source.records) and records != source.records:
            found.append(f"{source.name} has {source.records} records, {records} before")
        elif None not in (files, source.fingerprint) and files != source.fingerprint:
            now, then = _shown(source.fingerprint), _shown(files)
            if now == then:
                found.append(f"the files of {source.name} have other names or sizes than before")
            else:
                found.append(f"{source.name} has {now}, {then} before")
    return found


def _shown(files: list) -> str:
    count, size, _ = files
    return f"{count} file{'' if count == 1 else 's'} of {size:,} bytes"
