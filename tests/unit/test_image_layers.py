"""A layer's blob: the same wherever it is made, readable by everybody, whole or not there."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlopsnb.errors import BuildError
from mlopsnb.images import layers
from mlopsnb.images.blobs import Piece, Spliced, opened
from mlopsnb.images.cache import Store
from mlopsnb.images.layers import pack
from mlopsnb.images.plan import Entry, Layer


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def layer(*entries, key="sha256:1", compress=True, size=1):
    return Layer(
        kind="wheel", name="numpy 2.0", key=key, entries=tuple(entries), compress=compress, size=size
    )


def blob(packed):
    with opened(packed.source) as file:
        return file.read()


def unpacked(packed):
    data = blob(packed)
    return gzip.decompress(data) if packed.layer.media_type == layers.GZIP else data


def members(packed):
    with tarfile.open(fileobj=io.BytesIO(unpacked(packed))) as archive:
        return {m.name: (m, archive.extractfile(m).read() if m.isfile() else b"") for m in archive}


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("compress", [True, False])
def test_the_digests_are_those_of_the_blob_and_of_its_tar(tmp_path, threads, compress):
    (tmp_path / "big.so").write_bytes(os.urandom(9 << 20))
    made = layer(
        Entry(path="opt/a/big.so", source=tmp_path / "big.so", mode=0o755),
        Entry(path="opt/a/link", link="big.so"),
        Entry(path="opt/empty", source=b""),
        compress=compress,
    )
    packed = pack(made, Store(tmp_path / "store"), threads)
    assert packed.layer.digest == sha256(blob(packed))
    assert packed.layer.diff_id == sha256(unpacked(packed))
    assert (packed.layer.size, packed.layer.unpacked) == (len(blob(packed)), len(unpacked(packed)))
    found = members(packed)
    assert list(found) == ["opt", "opt/a", "opt/a/big.so", "opt/a/link", "opt/empty"]
    assert found["opt/a/big.so"][1] == (tmp_path / "big.so").read_bytes()
    assert found["opt/a/link"][0].linkname == "big.so"
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m, _ in found.values()} == {(0, 0, "", "", 0)}
    assert [oct(m.mode) for m, _ in found.values()] == ["0o755", "0o755", "0o755", "0o777", "0o644"]


def test_another_time_place_umask_and_number_of_threads_give_the_same_blob(tmp_path, threads):
    digests = set()
    for number, mask in enumerate((0o022, 0o077)):
        files = tmp_path / str(number)
        before = os.umask(mask)
        try:
            files.mkdir()
            for name in reversed("abc") if number else "abc":
                (files / name).write_bytes(name.encode() * (3 << 20))
                os.utime(files / name, (number, number))
            entries = [Entry(path=f"x/{p.name}", source=p) for p in files.iterdir()]
            with ThreadPoolExecutor(number + 1) as pool:
                digests.add(pack(layer(*entries), Store(tmp_path / f"store{number}"), pool).layer.digest)
        finally:
            os.umask(before)
    assert len(digests) == 1


def test_what_was_packed_before_is_found_and_not_read_again(tmp_path, threads):
    (tmp_path / "a").write_bytes(b"before")
    store = Store(tmp_path / "store")
    made = layer(Entry(path="a", source=tmp_path / "a"))
    first = pack(made, store, threads)
    (tmp_path / "a").unlink()
    told = []
    assert pack(replace(made, name="renamed"), store, threads, on_bytes=told.append).layer == replace(
        first.layer, name="renamed"
    )
    assert told == [made.size]


def test_a_blob_that_a_crash_cut_short_is_packed_again(tmp_path, threads):
    store = Store(tmp_path / "store")
    made = layer(Entry(path="a", source=b"text"))
    first = pack(made, store, threads)
    first.source.write_bytes(b"")
    again = pack(made, store, threads)
    assert again.layer == first.layer
    assert blob(again)


def test_an_uncompressed_layer_is_read_where_its_files_are(tmp_path, threads):
    (tmp_path / "weights").write_bytes(bytes(5 << 20))
    store = Store(tmp_path / "store")
    packed = pack(layer(Entry(path="w", source=tmp_path / "weights"), compress=False), store, threads)
    assert isinstance(packed.source, Spliced)
    assert not (store.root / "blobs").exists()


def test_progress_adds_up_to_the_files(tmp_path, threads):
    (tmp_path / "a").write_bytes(bytes(9_000_000))
    told = []
    made = layer(Entry(path="a", source=tmp_path / "a"), Entry(path="b", source=b"x" * 600), size=9_000_600)
    pack(made, Store(tmp_path / "store"), threads, on_bytes=told.append)
    assert sum(told) == 9_000_600
    assert len(told) > 2


def test_a_file_that_changes_while_it_is_packed_is_an_error(tmp_path, threads):
    path = tmp_path / "a"
    path.write_bytes(bytes(10 << 20))
    for grow in (1, -1):
        store = Store(tmp_path / f"store{grow}")

        def write(count, grow=grow):
            path.write_bytes(bytes((10 << 20) + grow))

        made = layer(Entry(path="0", source=bytes(5 << 20)), Entry(path="a", source=path))
        with pytest.raises(BuildError, match="was changed while it was packed"):
            pack(made, store, threads, on_bytes=write)
        assert not list((store.root / "tmp").iterdir())
        path.write_bytes(bytes(10 << 20))


@pytest.mark.parametrize("missing", [True, False])
def test_what_is_no_file_is_an_error(tmp_path, threads, missing):
    path = tmp_path / "pipe"
    if not missing:
        os.mkfifo(path)
    with pytest.raises(BuildError, match="cannot be packed"):
        pack(layer(Entry(path="a", source=path)), Store(tmp_path / "store"), threads)


def test_calling_off_leaves_nothing(tmp_path, threads):
    store = Store(tmp_path / "store")
    made = layer(Entry(path="a", source=os.urandom(20 << 20)))
    told = []
    with pytest.raises(KeyboardInterrupt):
        pack(made, store, threads, on_bytes=told.append, cancelled=lambda: len(told) > 1)
    assert not list((store.root / "tmp").iterdir())
    assert not (store.root / "blobs").exists()
    assert pack(made, store, threads).layer.size


def test_sizes_over_8_gib_are_written_as_pax_has_them(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate((8 << 30) + 5)
    source = Spliced(tuple(layers._tar([Entry(path="w", source=path), Entry(path="x", source=b"after")])))
    with opened(source) as file, tarfile.open(fileobj=file) as archive:
        assert [(m.name, m.size) for m in archive] == [("w", (8 << 30) + 5), ("x", 5)]


NAMES = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="/\0"), min_size=1, max_size=130
).filter(lambda name: name not in {".", ".."} and len(name.encode()) < 250)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def without_clashes(paths):
    files = set(paths)
    return sorted(p for p in files if not any(q.startswith(f"{p}/") for q in files))


@given(
    st.lists(PATHS, min_size=1, max_size=6).map(without_clashes),
    st.binary(max_size=1100),
    st.one_of(st.none(), NAMES),
)
@settings(max_examples=200, deadline=None)
def test_any_name_comes_out_as_it_went_in(paths, data, link):
    entries = [Entry(path=p, source=None if link else data, link=link or "") for p in paths]
    tar = b"".join(layers._tar(entries))
    with tarfile.open(fileobj=io.BytesIO(tar), errors="strict") as archive:
        found = archive.getmembers()
        files = [m for m in found if not m.isdir()]
        assert sorted(m.name for m in files) == paths
        assert all(m.linkname == link if link else archive.extractfile(m).read() == data for m in files)
        # Its directories come before what is in them, once.
        names = [m.name for m in found]
        assert len(set(names)) == len(names)
        for place, name in enumerate(names):
            assert "/" not in name or name.rpartition("/")[0] in names[:place]
    assert len(tar) % 512 == 0


@given(st.lists(st.text("abc/é", min_size=1, max_size=120), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gnu_tar_reads_the_same(tmp_path, names):
    paths = without_clashes({p for n in names if (p := "/".join(filter(None, n.split("/"))))})
    place = tmp_path / "out"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    tar = b"".join(layers._tar([Entry(path=p, source=p.encode()) for p in paths]))
    subprocess.run(["tar", "-x", "-C", place], input=tar, check=True)
    assert {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()} == set(paths)
    assert all((place / p).read_text() == p for p in paths)


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 40)), max_size=8),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100)), max_size=6),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_spliced_blob_reads_like_one_file(tmp_path, pieces, reads):
    made, whole = [], b""
    for number, piece in enumerate(pieces):
        if isinstance(piece, int):
            path = tmp_path / str(number)
            path.write_bytes(bytes([number]) * piece)
            made.append(Piece(path, piece))
            whole += bytes([number]) * piece
        else:
            made.append(piece)
            whole += piece
    source = Spliced(tuple(made))
    assert source.size == len(whole)
    with opened(source) as file:
        assert file.read() == whole
        for start, count in reads:
            file.seek(start)
            assert file.read(count) == whole[start : start + count]
        assert file.seek(0, io.SEEK_END) == len(whole)
