"""Files of KV blocks: what was written is read, and nothing else is."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kvasir_runtime.worker.block_files import HEADER_BYTES, BlockFiles, BlockFormat

FORMAT = BlockFormat("1.0", "model", "none", "bfloat16/bfloat16", "4x2x2x16x64:rows")
BLOCK, OTHER = b"\x01" * 16, b"\x02" * 16
CONTENT = bytes(range(256)) * 4


@pytest.fixture
def files(tmp_path: Path) -> BlockFiles:
    return BlockFiles(tmp_path, FORMAT, len(CONTENT))


def path_of(folder: Path, block: bytes = BLOCK) -> Path:
    (path,) = folder.rglob(f"{block.hex()}.kv")
    return path


def read(files: BlockFiles, block: bytes = BLOCK, adapter: str = "") -> tuple[str, bytes]:
    content = bytearray(len(CONTENT))
    return files.read(block, adapter, memoryview(content)), bytes(content)


def test_a_block_is_read_as_it_was_written_by_its_owner_alone(files: BlockFiles, tmp_path: Path) -> None:
    """Every bit; nobody else may look; no draft is left."""
    assert files.write(BLOCK, "d1", memoryview(CONTENT)) == "done"
    assert read(files, adapter="d1") == ("done", CONTENT)
    assert path_of(tmp_path).stat().st_mode & 0o777 == 0o600
    assert path_of(tmp_path).stat().st_size == files.file_bytes
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders if folder.name != "kvasir-kv")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [path_of(tmp_path)]


def test_every_flipped_bit_is_noticed(files: BlockFiles, tmp_path: Path) -> None:
    """In the header's words as in keys and values."""
    files.write(BLOCK, "", memoryview(CONTENT))
    path = path_of(tmp_path)
    whole = path.read_bytes()
    words = len(whole[:HEADER_BYTES].rstrip(b"\0"))
    for place in (0, words // 2, words - 3, HEADER_BYTES, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert read(files)[0] in ("corrupt", "foreign"), place
    path.write_bytes(whole[:-1])
    assert read(files)[0] == "corrupt"
    path.write_bytes(b"")
    assert read(files)[0] == "corrupt"
    path.unlink()
    assert read(files)[0] == "missing"


@pytest.mark.parametrize("change", [{"version": "2.0"}, {"model_digest": "x"}, {"dtype": "float32"}, {"layout": "1"}])
def test_what_another_engine_wrote_is_not_used(files: BlockFiles, tmp_path: Path, change: dict[str, str]) -> None:
    """Not found under its own name, and refused by its header where somebody put it there."""
    others = BlockFiles(tmp_path, replace(FORMAT, **change), len(CONTENT))
    others.write(BLOCK, "", memoryview(CONTENT))
    assert read(files)[0] == "missing"
    found = files.scan()
    assert (found.own, found.num_foreign, found.corrupt) == ([], 1, 0)
    theirs = path_of(tmp_path)
    ours = files._path(BLOCK)
    ours.parent.mkdir()
    theirs.rename(ours)
    assert read(files)[0] == "foreign"


def test_other_adapters_and_blocks_are_foreign(files: BlockFiles, tmp_path: Path) -> None:
    """A file that bears another's name is told by its header."""
    files.write(BLOCK, "d1", memoryview(CONTENT))
    assert read(files, adapter="d2")[0] == "foreign"
    ours = files._path(OTHER)
    ours.parent.mkdir()
    path_of(tmp_path).rename(ours)
    assert read(files, OTHER, "d1")[0] == "foreign"


def test_a_folder_is_told_by_names_and_sizes_oldest_first(files: BlockFiles, tmp_path: Path) -> None:
    """Damaged sizes are counted as such; whatever else lies outside is left alone."""
    for number, block in enumerate((OTHER, BLOCK)):
        files.write(block, "", memoryview(CONTENT))
        os.utime(path_of(tmp_path, block), (number, number))
    short = files._path(b"\x03" * 16)
    short.parent.mkdir()
    short.write_bytes(b"short")
    (tmp_path / "kvasir-kv" / "notes.txt").write_text("x")
    (tmp_path / "somebody's.txt").write_text("x")
    found = files.scan()
    assert found.own == [OTHER, BLOCK]
    assert (found.corrupt, found.num_foreign) == (1, 1)
    assert sorted(Path(path).name for path, _ in found.foreign) == sorted([short.name, "notes.txt"])
    assert files.remove(BLOCK) == files.remove(BLOCK) == "done"
    assert read(files)[0] == "missing"


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(errno.ENOSPC, "full"), (errno.EDQUOT, "full"), (errno.EIO, "failed"), (errno.EROFS, "failed")],
)
def test_a_volume_that_takes_no_more_leaves_no_draft(
    files: BlockFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, outcome: str
) -> None:
    """No room is told from other errors, and the words of the volume are kept for the log."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", refuse)
    assert files.write(BLOCK, "", memoryview(CONTENT)) == outcome
    assert os.strerror(number) in files.error
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
