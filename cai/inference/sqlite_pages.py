"""Records read from the pages of a SQLite file directly, for a file that SQLite itself refuses.

Every page that may hold records is read by itself, without the tree above it, from the file and from every frame of its
write-ahead log. So a record is found as long as its own pages are whole; what is found may be damaged, or of an earlier
state of the file: the caller has to know its records by a hash. The format: https://sqlite.org/fileformat2.html
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

DEFAULT_PAGE = 4096  # bytes, where neither file says
FILE_HEADER, WAL_HEADER, FRAME_HEADER = 100, 32, 24  # bytes
TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR = 13, 10, 2  # first byte of a page
BAD_POINTERS = 8  # in a row, after which a page holds no more cells
INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type: bytes
LARGEST = 2**30  # bytes of a record, SQLite's own limit

Value = int | float | bytes | str | None


class Pages:
    """The pages of a file and of its write-ahead log, by number."""

    def __init__(self, path: Path, wal: bytes | None = None) -> None:
        """`wal`: the content of the log, if the one beside the file may have changed since it was read."""
        log = path.with_name(path.name + "-wal")
        self._wal = wal if wal is not None else log.read_bytes() if log.exists() else b""
        self._file: BinaryIO | None = path.open("rb") if path.exists() else None
        self.size = self._page_size()
        self._frames: defaultdict[int, list[int]] = defaultdict(list)  # page: offsets in the log, oldest first
        for offset in range(WAL_HEADER, len(self._wal) - FRAME_HEADER - self.size + 1, FRAME_HEADER + self.size):
            self._frames[int.from_bytes(self._wal[offset : offset + 4])].append(offset + FRAME_HEADER)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def records(self, log_only: bool = False) -> Iterator[list[Value]]:
        """Everything that looks like a record, possibly more than once; `log_only` leaves out the file's own pages."""
        count = 0
        if self._file is not None and not log_only:
            self._file.seek(0, 2)
            count = -(-self._file.tell() // self.size)
        for number in range(1, count + 1):
            yield from self._of_page(number, self._in_file(number))
        for number, offsets in self._frames.items():
            for offset in offsets:
                yield from self._of_page(number, self._wal[offset : offset + self.size])

    def _page_size(self) -> int:
        header = b""
        if self._file is not None:
            self._file.seek(0)
            header = self._file.read(FILE_HEADER)
        sizes = (
            int.from_bytes(header[16:18]) if header.startswith(b"SQLite format 3\0") else 0,
            int.from_bytes(self._wal[8:12]),
        )
        for size in sizes:
            size = 65536 if size == 1 else size
            if 512 <= size <= 65536 and size & (size - 1) == 0:
                return size
        return DEFAULT_PAGE

    def _in_file(self, number: int) -> bytes:
        """A page as the file has it; its end is zeros where the file is cut off."""
        if self._file is None:
            return b""
        self._file.seek((number - 1) * self.size)
        page = self._file.read(self.size)
        return page.ljust(self.size, b"\0") if page else b""

    def _of_page(self, number: int, page: bytes) -> Iterator[list[Value]]:
        """The records of a page, read as its first byte says and as a leaf of a table, in case that byte is damaged."""
        start = FILE_HEADER if number == 1 else 0
        kinds = dict.fromkeys((page[start], TABLE_LEAF)) if len(page) > start else {}
        pointer, first, bad = start + 8, self.size, 0
        while pointer + 2 <= first and bad < BAD_POINTERS:  # the count of cells may be damaged too
            cell = int.from_bytes(page[pointer : pointer + 2])
            pointer += 2
            if not start + 8 < cell < self.size:
                bad += 1
                continue
            bad, records = 0, [record for kind in kinds for record in self._of_cell(page, cell, kind)]
            if records:
                first = min(first, cell)
            yield from records

    def _of_cell(self, page: bytes, at: int, kind: int) -> Iterator[list[Value]]:
        at += 4 if kind == INDEX_INTERIOR else 0
        length, at = _varint(page, at)
        if kind not in (INDEX_LEAF, INDEX_INTERIOR):
            _, at = _varint(page, at)  # the row's number
        if not 2 <= length < LARGEST:
            return
        most = self.size - 35
        if kind in (INDEX_LEAF, INDEX_INTERIOR):
            most = (self.size - 12) * 64 // 255 - 23
        if length <= most:
            payloads = [page[at : at + length]]
        else:
            least = (self.size - 12) * 32 // 255 - 23
            local = least + (length - least) % (self.size - 4)
            local = local if local <= most else least
            next_page = int.from_bytes(page[at + local : at + local + 4])
            payloads = [
                page[at : at + local] + self._overflow(next_page, length - local, newest) for newest in (True, False)
            ]
        for payload in dict.fromkeys(payloads):
            if len(payload) == length and (record := _record(payload)) is not None:
                yield record

    def _overflow(self, number: int, length: int, newest: bool) -> bytes:
        """The rest of a record from its chain of pages: the log's newest, or the file's own."""
        parts: list[bytes] = []
        visited: set[int] = set()
        while length > 0 and number and number not in visited:
            visited.add(number)
            offsets = self._frames.get(number)
            in_log = self._wal[offsets[-1] : offsets[-1] + self.size] if offsets and newest else b""
            page = in_log or self._in_file(number)
            if len(page) < self.size:
                break
            parts.append(page[4 : 4 + min(length, self.size - 4)])
            number, length = int.from_bytes(page[:4]), length - len(parts[-1])
        return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number at a place, the place after it)."""
    value = 0
    for count, byte in enumerate(data[at : at + 9], start=1):
        if count == 9:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + count
    return 0, len(data)


def _record(payload: bytes) -> list[Value] | None:
    """The values of a record; None for what is none."""
    size, at = _varint(payload, 0)
    values: list[Value] = []
    body = size
    if not at < size <= len(payload):
        return None
    while at < size:
        serial, at = _varint(payload, at)
        width = INTEGERS.get(serial, 8 if serial == 7 else (serial - 12) // 2 if serial >= 12 else 0)
        data = payload[body : body + width]
        if len(data) < width or serial in (10, 11):
            return None
        body += width
        try:
            values.append(_value(serial, data))
        except UnicodeDecodeError:
            return None
    return values if body == len(payload) else None


def _value(serial: int, data: bytes) -> Value:
    if serial in INTEGERS:
        return int.from_bytes(data, signed=True)
    if serial == 7:
        return float(struct.unpack(">d", data)[0])
    if serial >= 12:
        return data.decode() if serial % 2 else data
    return {8: 0, 9: 1}.get(serial)
