"""What sampling needs, packed for one copy to the device. In: `Draws`, `Masks`, and which row of the logits each draw
reads. Out: one int32 array whose layout depends on its `DrawRoom` alone, so that a captured graph can read it; and the
views of it on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ramet.kernels.noise import keys
from ramet.runtime.batch import F32, I32, I64, U32, Draws, Masks

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
_TOKEN_BITS = 32
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
    """`parts`, int32 on the host: table `[FIELDS, columns]` and edits `[4, edit_columns]` sorted by draw and token;
    then the bitmasks that there are, `[V/32]` each. One behind the other they are the first of `count` words, the
    room's: those behind them are not read."""

    parts: tuple[I32, ...]
    room: DrawRoom
    count: int

    @property
    def words(self) -> I32:
        """The parts as one array `[count]`, with zeros behind them."""
        made = np.zeros(self.count, np.int32)
        np.concatenate(self.parts, out=made[: sum(map(len, self.parts))])
        return made


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
    """Changed logits of all draws: x becomes (x / scale if x > 0 else x * scale) - less + more. `keys` `[E] int64`,
    ascending: draw and token, 32 bits each."""

    keys: I64
    scale: F32
    less: F32
    more: F32


@dataclass(frozen=True, slots=True)
class Asked:
    """What draws ask for; `room` is the least that holds it. `columns` `[FIELDS, R]` is the table without masks and
    edits, `allowed` has a bitmask per constrained draw."""

    columns: I32
    edits: _Edits
    allowed: dict[int, U32]
    vocab: int

    @property
    def room(self) -> DrawRoom:
        """As much as these draws need."""
        cut = bool(self.columns[CUT].any())
        return DrawRoom(self.columns.shape[1], len(self.edits.keys), len(self.allowed), cut)

    def packed(self, room: DrawRoom) -> PackedDraws:
        """In a `room` that is large enough."""
        table_words = FIELDS * room.columns
        words = np.zeros(table_words + EDIT_FIELDS * room.edit_columns, np.int32)
        table = words[:table_words].reshape(FIELDS, room.columns)
        table[[AT, MASK, COPY, INTO]] = -1
        table[:, : self.columns.shape[1]] = self.columns
        if len(self.edits.keys):
            _put_edits(self.edits, table, words[table_words:].reshape(EDIT_FIELDS, room.edit_columns))
        table[MASK, list(self.allowed)] = range(len(self.allowed))
        masks = (bits.view(np.int32) for bits in self.allowed.values())
        return PackedDraws((words, *masks), room, room.words(self.vocab))


def asked(draws: Draws, at: I32, masks: Masks, vocab: int) -> Asked:
    """What R draws ask for that read the rows `at` `[R]` of logits `[U, vocab]`."""
    columns = _options(draws, vocab)
    columns[AT] = at
    return Asked(columns, _edits(draws, masks), _all_masks(masks), vocab)


def pack_draws(draws: Draws, at: I32, masks: Masks, vocab: int, room: DrawRoom | None = None) -> PackedDraws | None:
    """Pack what `asked` finds. `room` None: as much as these draws need. Returns None when they do not fit `room`."""
    found = asked(draws, at, masks, vocab)
    need = found.room
    room = room or need
    if need.draws > room.draws or need.edits > room.edits or need.masks > room.masks or need.cut > room.cut:
        return None
    return found.packed(room)


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


_NO_EDITS = _Edits(np.zeros(0, np.int64), *np.zeros((3, 0), np.float32))


def _all_masks(masks: Masks) -> dict[int, U32]:
    """One bitmask per constrained draw: several of one draw allow what all of them allow."""
    found: dict[int, U32] = {}
    for r, bits in masks.allowed:
        found[r] = found[r] & bits if r in found else bits
    return found


def _edits(draws: Draws, masks: Masks) -> _Edits:
    """Repetition, frequency and presence penalties and bias, by draw and token; what `reference.adjusted` defines."""
    if not masks.history and not draws.bias:
        return _NO_EDITS
    repetition, frequency, presence = draws.repetition, draws.frequency, draws.presence
    counted = (frequency != 0) | (presence != 0)
    seen = np.unique(_keys([(r, tokens) for r, tokens, _ in masks.history if repetition[r] != 1]))
    made = [(r, tokens[len(tokens) - own :]) for r, tokens, own in masks.history if counted[r]]
    own, counts = np.unique(_keys(made), return_counts=True)
    biased = _keys([(r, tokens) for r, tokens, _ in draws.bias])
    every = np.unique(np.concatenate((seen, own, biased)))
    scale, less, more = (np.full(len(every), value, np.float32) for value in (1, 0, 0))
    scale[np.searchsorted(every, seen)] = repetition[seen >> _TOKEN_BITS]
    r = own >> _TOKEN_BITS
    less[np.searchsorted(every, own)] = counts.astype(np.float32) * frequency[r] + presence[r]
    if draws.bias:
        np.add.at(more, np.searchsorted(every, biased), np.concatenate([values for _, _, values in draws.bias]))
    return _Edits(every, scale, less, more)


def _keys(lists: list[tuple[int, I32]]) -> I64:
    """Draw and token of all tokens of `lists`."""
    if not lists:
        return np.zeros(0, np.int64)
    draw = np.array([r for r, _ in lists], np.int64) << _TOKEN_BITS
    made: I64 = np.repeat(draw, [len(tokens) for _, tokens in lists])
    made += np.concatenate([tokens for _, tokens in lists])
    return made


def _put_edits(edits: _Edits, table: I32, out: I32) -> None:
    which, first, count = np.unique(edits.keys >> _TOKEN_BITS, return_index=True, return_counts=True)
    table[COPY, which], table[FIRST_EDIT, which], table[LAST_EDIT, which] = range(len(which)), first, first + count
    end = len(edits.keys)
    out[0, :end] = edits.keys & ((1 << _TOKEN_BITS) - 1)
    for row, values in enumerate((edits.scale, edits.less, edits.more), start=1):
        out[row, :end] = values.view(np.int32)
