"""One file per kind of source: from files as others write them to chat records with their pictures.

To add a format, copy `webdataset.py`: write a class of `__len__`, `__getitem__` and `where` (`rows.RowSource` leaves
only `__len__`, `_row` and `where` to write), name the format in `source_config` (`FORMATS`, `SUFFIXES`,
`FORMATS_OF_KEY`), and open it in `sources.open_records`. If it can be read from front to end, name it in `STREAMED` of
`source_config`, and open it in `sources.open_stream`, with a generator of its rows in `streaming.stream_files`. What a
row may look like is decided in `rows.py`, the same for all formats.
"""
