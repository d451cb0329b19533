"""Positions in the data that older versions saved, in which all rows of a batch shared one place in the mixture.

Its first K documents of a source were drawn, those that wait included; each row goes on with its first document that
comes after them, and has its own of those that wait. So none comes twice and none is left out, but the order is new.
"""

from hybridgen.data.keyed_random import lap_shift

ROWS_DIVIDED = (
    "its position in the data is that of an older version, in which all rows of a batch shared one; each goes on with "
    "documents of its own, none of them twice, in another order (of streams some may come twice in this epoch)"
)

LABELS_CHANGED = (
    "since it was saved, some words of configs have another meaning: loss_on: all no longer teaches what a chat "
    "template writes around words (loss_on: everything does), and rows of a text alone have no template (form: turn "
    "gives them one)"
)


def is_of_one_mixture(state: dict) -> bool:
    return "mixture" in state


def divided_among_rows(state: dict, rows: int) -> dict:
    """Such a position as one of `rows` rows, in today's form (`loading.RowLoader.state_dict`)."""
    mixture = state["mixture"]
    streaming = mixture.get("streams", {})
    divided = {str(row): _row(state, mixture, row, rows) for row in range(rows)}
    for name, number in state["pending"]:
        row, cursor = _row_of(number, rows, name in streaming)
        divided[str(row)]["waiting"].append([name, cursor, 0])
    rest = {name: state[name] for name in ("rows", "length", "part", "batches") if name in state}
    broken = {"broken": mixture.get("broken", [])}
    return {**rest, **broken, "streams": streaming, "data": mixture.get("data", {}), "row_streams": divided}


def divided_pictures(state: dict, rows: int) -> dict:
    """The same of a codec's position, in the form of `training.stages.pictures`: a record of which some pictures were
    used goes on in the row that it belongs to."""
    names = state.get("sources", [])
    streaming = [
        number < len(names) and names[number] in state.get("streams", {}) for number in range(len(state["given"]))
    ]
    numbered = list(enumerate(state["cursors"]))
    divided = {
        str(row): {
            "cursors": [_cursor(drawn, row, rows, streaming[number]) for number, drawn in numbered],
            "inside": [0] * len(numbered),
            "given": [_part(given, row, rows) for given in state["given"]],
        }
        for row in range(rows)
    }
    for number, inside in enumerate(state["inside"]):
        row, _ = _row_of(state["cursors"][number], rows, streaming[number])
        divided[str(row)]["inside"][number] = inside
    return {name: value for name, value in state.items() if name not in ("cursors", "inside", "given")} | {
        "row_streams": divided
    }


def _cursor(drawn: int, row: int, rows: int, streaming: bool) -> int:
    """How many of a row's documents are among the first ones of all."""
    lap, taken = divmod(drawn, rows)
    place = row if streaming else (row + lap_shift(lap, rows)) % rows
    return lap + (place < taken)


def _row(state: dict, mixture: dict, row: int, rows: int) -> dict:
    streaming = mixture.get("streams", {})
    cursors = {name: _cursor(drawn, row, rows, name in streaming) for name, drawn in mixture["cursors"].items()}
    return {
        "drawn": sum(cursors.values()),
        "placed": _part(state["used"], row, rows),
        "cut": 0,
        "dropped": 0,
        "cursors": cursors,
        "pieces": dict.fromkeys(cursors, 0),
        "tokens": {name: _part(tokens, row, rows) for name, tokens in mixture["tokens"].items()},
        "due": {name: due / rows for name, due in mixture["owed"].items()},
        "ahead": dict.fromkeys(cursors, 0.0),
        "waiting": [],
    }


def _row_of(number: int, rows: int, streaming: bool) -> tuple[int, int]:
    """The row that a document belongs to, and its number there."""
    lap, place = divmod(number, rows)
    row = place if streaming else (place - lap_shift(lap, rows)) % rows
    return row, lap * rows + row


def _part(count: int, row: int, rows: int) -> int:
    """A row's part of a whole number; together they are all of it."""
    return count // rows + (row < count % rows)
