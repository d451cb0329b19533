"""A checkpoint's tensors beside those that its config makes: what fits, what does not, and the table of both.

Headers are read, no weights. A dtype that differs is no error (it is kept, tensor by tensor); a shape that differs, or
a tensor too many or too few, is one. Every bridge's dry run is made of this.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hybridgen.bridges.weights import StoredTensor, common_dtype
from hybridgen.core.values import one_line


@dataclass(frozen=True)
class Comparison:
    """Tensors of a checkpoint beside those that its config makes, by the names that its bridge works with.

    Args:
        mapped: tensors that fit.
        missing: name -> shape.
        shapes, dtypes: of tensors that differ, name -> (the checkpoint's, the config's).
    """

    mapped: list[str]
    missing: dict[str, tuple[int, ...]]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: dict[str, tuple[torch.dtype, torch.dtype]]


def compare_tensors(tensors: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]]) -> Comparison:
    """Compare tensors with the shapes that there should be; their dtypes with the one that most have."""
    both, dtype = [name for name in tensors if name in expected], common_dtype(tensors.values())
    return Comparison(
        mapped=[name for name in both if tensors[name].shape == expected[name]],
        missing={name: shape for name, shape in expected.items() if name not in tensors},
        unexpected=[name for name in tensors if name not in expected],
        shapes={name: (tensors[name].shape, expected[name]) for name in both if tensors[name].shape != expected[name]},
        dtypes={name: (tensors[name].dtype, dtype) for name in both if tensors[name].dtype != dtype},
    )


def shapes_on_meta(build: Callable[[], nn.Module], kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of what `build` makes; no memory is used for weights.

    Args:
        kind: what it is, such as "Janus".

    Raises:
        ValueError: nothing can be built so.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (ValueError, AssertionError, RuntimeError, KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(f"config.json describes no {kind} that can be built: {one_line(error)}") from error
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_compared(folder: Path, compared: Comparison, kind: str) -> None:
    """Raises ValueError, in one sentence, when the tensors are not those of the config."""
    more = "; hybridgen convert --dry-run shows all"
    for name in compared.missing:
        raise ValueError(f"{folder} lacks {len(compared.missing)} of its tensors, such as {name}{more}")
    for name in compared.unexpected:
        raise ValueError(f"{folder} has {len(compared.unexpected)} tensors that no {kind} has, such as {name}{more}")
    for name, (shape, expected) in compared.shapes.items():
        raise ValueError(f"{folder} has {name} of shape {shape}, but its config makes it {expected}{more}")


def comparison_lines(tensors: dict[str, StoredTensor], compared: Comparison, dropped: dict[str, str]) -> Iterator[str]:
    """The table: the parts of the model, a line each, and what fits and what does not.

    Args:
        dropped: tensors that are left out, and why.
    """
    yield from _parts(tensors)
    yield ""
    yield f"mapped       {len(compared.mapped)}"
    yield from listed("missing", {name: f"expected {shape}" for name, shape in compared.missing.items()})
    yield from listed("unexpected", {name: str(tensors[name].shape) for name in compared.unexpected})
    yield from listed("other shape", {name: f"{a}, expected {b}" for name, (a, b) in compared.shapes.items()})
    yield from listed("other dtype", {name: f"{short(a)}, most {short(b)}" for name, (a, b) in compared.dtypes.items()})
    yield from listed("left out", dropped)


def _parts(tensors: dict[str, StoredTensor]) -> Iterator[str]:
    parts: dict[str, list] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.removeprefix("model.").split(".")[0], []).append(tensor)
    yield f"{'part':<24}{'tensors':>8}{'parameters':>16}  dtype"
    for part, of_part in [*parts.items(), ("all", list(tensors.values()))]:
        dtypes = {short(tensor.dtype) for tensor in of_part}
        kind = short(common_dtype(of_part)) + (" and others" if len(dtypes) > 1 else "")
        yield f"{part:<24}{len(of_part):>8}{sum(tensor.size for tensor in of_part):>16,}  {kind}"


def listed(what: str, names: dict[str, str]) -> Iterator[str]:
    """How many there are, and each with its note."""
    yield f"{what:<12} {len(names)}"
    for name, note in names.items():
        yield f"  {name}  {note}".rstrip()


def short(dtype: torch.dtype) -> str:
    """`bfloat16`, without the library's name."""
    return str(dtype).removeprefix("torch.")
