"""What sampling needs, packed for one copy to the device. In: `Draws`, `Masks`, and which row of the logits each draw
reads. Out: one int32 array whose layout depends on its `DrawRoom` alone, so that a captured graph can read it; and the
views of it on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ramet.kernels.noise import keys
from ramet.runtime.batch import F32, I32, U32, Draws, Masks

# rows of the table, one column per draw; floats are stored by their bits
AT = 0  # row of the logits; -1: no draw, the column is padding
SCALE = 1  # float: log2(e) / temperature; 0: greedy
TOP_K = 2  # 0: all
TOP_P = 3  # float
MIN_P = 4  # float
CUT = 5  # 1: some of the three above cuts tokens
KEY_LOW = 6  # halves of the noise key
KEY_HIGH = 7
MASK = 8  # row of the bitmasks, or -1
COPY = 9  # row of the edited copies, or -1
FIRST_EDIT = 10
LAST_EDIT = 11  # exclusive
INTO = 12  # row of the token table; -1 in padding
FIELDS = 13

EDIT_FIELDS = 4  # token id; float: scale, subtrahend, summand
_STEEPEST = 1e30  # of SCALE, so that it times a difference of logits near 1 stays finite


@dataclass(frozen=True, slots=True)
class DrawRoom:
    """Capacities. draws: tokens to sample; edits: changed logits, over all draws; masks: bitmasks; cut: whether draws
    may use top_k, top_p or min_p (without, two launches and their scratch fall away)."""

    draws: int
    edits: int = 0
    masks: int = 0
    cut: bool = True

    @property
    def copies(self) -> int:
        """Draws that may have edits: each has at least one."""
        return min(self.draws, self.edits)

    @property
    def columns(self) -> int:
        """Columns of the table: a multiple of 4, so that every part begins at 16 bytes."""
        return -(-self.draws // 4) * 4

    @property
    def edit_columns(self) -> int:
        """The same for edits."""
        return -(-self.edits // 4) * 4

    def words(self, vocab: int) -> int:
        """Length of the packed array."""
        return FIELDS * self.columns + EDIT_FIELDS * self.edit_columns + self.masks * mask_words(vocab)


def mask_words(vocab: int) -> int:
    """32-bit words of a packed bitmask over `vocab` tokens."""
    return -(-vocab // 32)


@dataclass(frozen=True, slots=True)
class PackedDraws:
    """`words` `[room.words(vocab)] int32` on the host: table `[FIELDS, columns]`, edits `[4, edit_columns]` sorted by
    draw and token, bitmasks `[masks, V/32]`."""

    words: I32
    room: DrawRoom


@dataclass(frozen=True, slots=True)
class DrawView:
    """The parts of packed words on the device, views of one tensor. `into` `[draws] int32`: rows of the token table, -1
    in padding."""

    room: DrawRoom
    table: torch.Tensor
    edits: torch.Tensor
    masks: torch.Tensor

    @property
    def into(self) -> torch.Tensor:
        """Where the drawn tokens go."""
        return self.table[INTO, : self.room.draws]


@dataclass(frozen=True, slots=True)
class _Edits:
    """Changed logits of one draw, ascending ids: x becomes (x / scale if x > 0 else x * scale) - less + more."""

    ids: I32
    scale: F32
    less: F32
    more: F32


def pack_draws(draws: Draws, at: I32, masks: Masks, vocab: int, room: DrawRoom | None = None) -> PackedDraws | None:
    """Pack R draws that read the rows `at` `[R]` of logits `[U, vocab]`. `room` None: as much as these draws need.
    Returns None when they do not fit `room`."""
    edits, allowed = _all_edits(draws, masks), _all_masks(masks)
    total = sum(len(edit.ids) for edit in edits.values())
    columns = _options(draws, vocab)
    need = DrawRoom(len(draws), total, len(allowed), bool(columns[CUT].any()))
    room = room or need
    if need.draws > room.draws or need.edits > room.edits or need.masks > room.masks or need.cut > room.cut:
        return None
    words = np.zeros(room.words(vocab), np.int32)
    table = words[: FIELDS * room.columns].reshape(FIELDS, room.columns)
    table[[AT, MASK, COPY, INTO]] = -1
    table[:, : len(draws)] = columns
    table[AT, : len(draws)] = at
    end = table.size + EDIT_FIELDS * room.edit_columns
    _put_edits(edits, table, words[table.size : end].reshape(EDIT_FIELDS, room.edit_columns))
    for row, (r, bits) in enumerate(allowed.items()):
        table[MASK, r] = row
        words[end + row * mask_words(vocab) : end + (row + 1) * mask_words(vocab)] = bits.view(np.int32)
    return PackedDraws(words, room)


def view_draws(words: torch.Tensor, room: DrawRoom) -> DrawView:
    """The parts of `words`, a device copy of `PackedDraws.words` of the same room."""
    edits = FIELDS * room.columns
    masks = edits + EDIT_FIELDS * room.edit_columns
    width = (len(words) - masks) // room.masks if room.masks else 0
    return DrawView(
        room,
        words[:edits].view(FIELDS, room.columns),
        words[edits:masks].view(EDIT_FIELDS, room.edit_columns),
        words[masks:].view(room.masks, width),
    )


def upload(array: I32, device: torch.device) -> torch.Tensor:
    """A copy of a host array on the device; through pinned memory of its own, so that nothing waits."""
    host = torch.from_numpy(np.ascontiguousarray(array))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.clone()


def _options(draws: Draws, vocab: int) -> I32:
    """The table's columns `[FIELDS, R]`, without AT, masks and edits. Options that cannot change the draw are off: a
    greedy draw, and top_k 1, take the most likely token whatever the rest says."""
    greedy = (draws.temperature == 0) | (draws.top_k == 1)
    with np.errstate(divide="ignore"):
        scale = np.where(greedy, 0.0, np.minimum(1 / (np.log(2) * draws.temperature.astype(np.float64)), _STEEPEST))
    top_k = np.where(greedy | (draws.top_k >= vocab), 0, draws.top_k)
    top_p = np.where(greedy, 1, draws.top_p).astype(np.float32)
    min_p = np.where(greedy, 0, draws.min_p).astype(np.float32)
    noise = keys(draws.seeds, draws.positions)
    table = np.full((FIELDS, len(draws)), -1, np.int32)
    table[SCALE] = scale.astype(np.float32).view(np.int32)
    table[TOP_K], table[TOP_P], table[MIN_P] = top_k, top_p.view(np.int32), min_p.view(np.int32)
    table[CUT] = (top_k > 0) | (top_p < 1) | (min_p > 0)
    table[KEY_LOW] = noise.astype(np.uint32).view(np.int32)
    table[KEY_HIGH] = (noise >> np.uint64(32)).astype(np.uint32).view(np.int32)
    table[FIRST_EDIT] = table[LAST_EDIT] = 0
    table[INTO] = draws.into
    return table


def _all_masks(masks: Masks) -> dict[int, U32]:
    """One bitmask per constrained draw: several of one draw allow what all of them allow."""
    found: dict[int, U32] = {}
    for r, bits in masks.allowed:
        found[r] = found[r] & bits if r in found else bits.astype(np.uint32)
    return found


def _all_edits(draws: Draws, masks: Masks) -> dict[int, _Edits]:
    """The edits of every draw that has some."""
    history = {r: (tokens, own) for r, tokens, own in masks.history}
    bias: dict[int, list[tuple[I32, F32]]] = {}
    for r, tokens, values in draws.bias:
        bias.setdefault(r, []).append((tokens, values))
    found = {}
    for r in sorted(history.keys() | bias.keys()):
        edits = _edits(draws, r, history.get(r), bias.get(r, []))
        if len(edits.ids):
            found[r] = edits
    return found


def _edits(draws: Draws, r: int, history: tuple[I32, int] | None, bias: list[tuple[I32, F32]]) -> _Edits:
    """Repetition, frequency and presence penalties and bias of draw r, by token; what `reference.adjusted` defines."""
    seen = own = np.zeros(0, np.int32)
    counts = np.zeros(0, np.int64)
    if history is not None:
        tokens, made = history
        if draws.repetition[r] != 1:
            seen = np.unique(tokens)
        if draws.frequency[r] != 0 or draws.presence[r] != 0:
            own, counts = np.unique(tokens[len(tokens) - made :], return_counts=True)
    ids = np.unique(np.concatenate((seen, own, *(tokens for tokens, _ in bias)))).astype(np.int32)
    scale, less, more = np.ones(len(ids), np.float32), np.zeros(len(ids), np.float32), np.zeros(len(ids), np.float32)
    scale[np.searchsorted(ids, seen)] = draws.repetition[r]
    less[np.searchsorted(ids, own)] = counts.astype(np.float32) * draws.frequency[r] + draws.presence[r]
    for tokens, values in bias:
        np.add.at(more, np.searchsorted(ids, tokens), values)
    return _Edits(ids, scale, less, more)


def _put_edits(edits: dict[int, _Edits], table: I32, out: I32) -> None:
    at = 0
    for copy, (r, edit) in enumerate(edits.items()):
        end = at + len(edit.ids)
        table[COPY, r], table[FIRST_EDIT, r], table[LAST_EDIT, r] = copy, at, end
        out[0, at:end] = edit.ids
        for row, values in enumerate((edit.scale, edit.less, edit.more), start=1):
            out[row, at:end] = values.view(np.int32)
        at = end
