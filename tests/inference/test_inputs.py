"""What predict is pointed at becomes one list: folders, tables and addresses, whole or in shards."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from uuid import uuid4
from zipfile import ZipFile

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, noise

from spectacles.core.config import PredictCommand
from spectacles.core.errors import UserError
from spectacles.data import addresses, remote_files
from spectacles.data.preprocessing import Preprocessing, decode_one
from spectacles.inference.inputs import Inputs, collect, parse_shard

PREPROCESSING = Preprocessing(32, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, 3)


@pytest.fixture
def store() -> str:
    """The address of an object store with three photos, two that are hidden and a file that is none."""
    address = f"memory:///{uuid4()}/photos"
    system = fsspec.filesystem("memory")
    for number, name in enumerate(["b 10.png", "b 2.png", "sub/[x]*.png", ".hidden.png", ".cache/x.png"]):
        system.pipe_file(f"{address}/{name}", encoded(noise(number, 40, 30)))
    system.pipe_file(f"{address}/notes.txt", b"")
    return address


@given(rows=st.integers(0, 500), of=st.integers(1, 40), with_ids=st.booleans())
def test_shards_are_all_rows_once_and_differ_by_one_at_most(rows: int, of: int, with_ids: bool) -> None:
    names = [str(number) for number in range(rows)]
    inputs = Inputs([f"/{name}" for name in names], names, names if with_ids else [], "id")
    shards = [inputs.shard(number, of) for number in range(1, of + 1)]
    assert [name for shard in shards for name in shard.names] == names
    assert all(shard.paths == [f"/{name}" for name in shard.names] for shard in shards)
    assert all(shard.ids == (shard.names if with_ids else []) for shard in shards)
    sizes = {len(shard.paths) for shard in shards}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "-1/3", "1/2/3", ""])
def test_a_shard_that_is_none_is_a_mistake(text: str) -> None:
    with pytest.raises(UserError, match="1/8 for the first of eight"):
        parse_shard(text)
    assert parse_shard(" 3/8 ") == (3, 8)


def test_a_folder_at_an_address_gives_its_files_in_natural_order(store: str) -> None:
    inputs = collect([store], PredictCommand())
    assert inputs.paths == inputs.names
    assert [name.removeprefix(f"{store}/") for name in inputs.names] == [
        "b 2.png", "b 10.png", "notes.txt", "sub/[x]*.png",
    ]  # fmt: skip


def test_files_and_globs_at_an_address(store: str) -> None:
    given_name = f"{store}/sub/[x]*.png"
    assert collect([given_name], PredictCommand()).paths == [given_name]
    assert collect([f"{store}/*.png"], PredictCommand()).paths == [f"{store}/b 2.png", f"{store}/b 10.png"]
    with pytest.raises(UserError, match="is neither a file nor a folder and matches nothing"):
        collect([f"{store}/nothing"], PredictCommand())


def test_photos_in_an_archive_in_a_store(store: str) -> None:
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        for name in ("a.png", "sub/b.png"):
            archive.writestr(name, encoded(noise(1, 40, 30)))
    fsspec.filesystem("memory").pipe_file(f"{store}/photos.zip", content.getvalue())
    inputs = collect([f"zip://*::{store}/photos.zip", f"zip://sub::{store}/photos.zip"], PredictCommand())
    assert inputs.paths == [f"zip://a.png::{store}/photos.zip", f"zip://sub/b.png::{store}/photos.zip"]
    assert all(decode_one(addresses.locate(path), PREPROCESSING).pixels is not None for path in inputs.paths)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_at_an_address_names_files_beside_it_or_anywhere(store: str, suffix: str, tmp_path: Path) -> None:
    elsewhere = f"{store}/sub/[x]*.png"
    table = pd.DataFrame({"id": [7, 8], "file": ["b 2.png", elsewhere]})
    writers = {"csv": lambda path: table.to_csv(path, index=False), "parquet": table.to_parquet,
               "jsonl": lambda path: table.to_json(path, orient="records", lines=True)}  # fmt: skip
    writers[suffix](tmp_path / f"list.{suffix}")
    content = (tmp_path / f"list.{suffix}").read_bytes()
    fsspec.filesystem("memory").pipe_file(f"{store}/list.{suffix}", content)
    inputs = collect([f"{store}/list.{suffix}"], PredictCommand())
    assert inputs == Inputs([f"{store}/b 2.png", elsewhere], ["b 2.png", elsewhere], ["7", "8"], "id")
    local = collect([str(tmp_path / f"list.{suffix}")], PredictCommand())
    assert local.paths == [str(tmp_path / "b 2.png"), elsewhere]
    based = collect([str(tmp_path / f"list.{suffix}")], PredictCommand(image_dir=store))
    assert based.paths == inputs.paths


def test_a_mistake_in_a_table_names_its_address(store: str) -> None:
    fsspec.filesystem("memory").pipe_file(f"{store}/empty.csv", b"file\n")
    with pytest.raises(UserError, match=rf"^{store}/empty.csv has no rows"):
        collect([f"{store}/empty.csv"], PredictCommand())
    with pytest.raises(UserError, match=rf"^{store}/none.csv does not exist"):
        collect([f"{store}/none.csv"], PredictCommand())


def test_a_parquet_list_keeps_text_empty_cells_and_lists(tmp_path: Path) -> None:
    table = pd.DataFrame({"file": ["a.png", "b.png"], "label": [["cat", "dog"], []], "id": ["01", None]})
    table.index = [5, 6]
    table.to_parquet(tmp_path / "list.parquet")
    inputs = collect([str(tmp_path / "list.parquet")], PredictCommand())
    assert inputs.ids == ["01", ""]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="cannot be read as a table"):
        collect([str(tmp_path / "broken.parquet")], PredictCommand())


def test_what_cannot_be_reached_is_reported(store: str) -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        collect(["nonsense://bucket/photos"], PredictCommand())
    with pytest.raises(UserError, match="cannot be reached"):
        collect(["ftp://127.0.0.1:9/photos"], PredictCommand())


def test_a_photo_at_an_address_is_read_like_any_other(store: str, tmp_path: Path) -> None:
    (tmp_path / "same.png").write_bytes(fsspec.filesystem("memory").cat_file(f"{store}/b 2.png"))
    there = decode_one(addresses.locate(f"{store}/b 2.png"), PREPROCESSING)
    here = decode_one(tmp_path / "same.png", PREPROCESSING)
    assert there.pixels is not None and here.pixels is not None
    assert (there.pixels == here.pixels).all() and there.name == f"{store}/b 2.png"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.png", "file not found"), ("notes.txt", "empty file"), ("sub", "file not found")],
)  # fmt: skip
def test_a_photo_that_is_not_there_is_rejected_with_the_reason(store: str, name: str, reason: str) -> None:
    rejected = decode_one(addresses.locate(addresses.join(store, name)), PREPROCESSING)
    assert rejected.pixels is None and reason in rejected.reason


class Door(BaseHTTPRequestHandler):
    """Says the status that the path ends with."""

    def do_HEAD(self) -> None:
        self.send_response(int(self.path[-3:]))
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_store_that_does_not_answer_is_no_missing_photo(web: str) -> None:
    assert decode_one(addresses.locate(f"{web}/404"), PREPROCESSING).reason == "file not found"
    for address in (f"{web}/503", "nonsense://x/y.png", "ftp://127.0.0.1:9/a.png"):
        with pytest.raises(UserError, match=f"^{address} cannot be reached"):
            decode_one(addresses.locate(address), PREPROCESSING)


def test_addresses_in_tables() -> None:
    assert addresses.join("s3://b/x", "a.png") == addresses.join("s3://b/x/", "/a.png") == "s3://b/x/a.png"
    assert addresses.join("zip://::s3://b/p.zip", "a.png") == "zip://a.png::s3://b/p.zip"
    assert addresses.join("s3://b", "gs://c/a.png") == "gs://c/a.png"
    assert addresses.parent("zip://in/list.csv::s3://b/p.zip") == "zip://in::s3://b/p.zip"
    assert addresses.parent("s3://b/list.csv") == "s3://b"
    assert (
        addresses.name_of("https://h/list.csv?key=a/b")
        == addresses.name_of("zip://x/list.csv::s3://b/p.zip")
        == "list.csv"
    )
    assert addresses.name_of("s3://b/what?.csv") == "what?.csv"


def test_whole_numbers_of_a_parquet_list_stay_whole(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": pd.array([7, None, 2**53 + 1], dtype="Int64"), "file": ["a.png", "b.png", "c.png"]})
    table.to_parquet(tmp_path / "list.parquet")
    assert collect([str(tmp_path / "list.parquet")], PredictCommand()).ids == ["7", "", str(2**53 + 1)]


def test_a_marker_of_a_folder_is_no_photo(store: str) -> None:
    class Marked(MemoryFileSystem):
        protocol = "marked"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(MemoryFileSystem._strip_protocol(path.replace("marked:", "memory:")))

        def find(self, path: str, **options: object) -> list[str]:
            return [f"{path}/", *super().find(path, **options)]

    fsspec.register_implementation("marked", Marked, clobber=True)
    address = store.replace("memory", "marked")
    assert len(collect([address], PredictCommand()).paths) == 4
    assert "" not in remote_files.names_in(address) and "photos" not in remote_files.names_in(address)


def test_a_name_that_leads_to_another_file_is_reported(store: str) -> None:
    fsspec.filesystem("memory").pipe_file(f"{store}/odd/a::b.png", b"")
    with pytest.raises(UserError, match=r"a::b\.png', which has no address of its own"):
        collect([f"{store}/odd"], PredictCommand())


@pytest.mark.parametrize("text", ["C:\\photos", "C://photos", "photos/a.png", "/photos/a://b", "s3:/bucket", ""])
def test_a_path_is_no_address(text: str) -> None:
    assert not addresses.is_address(text)
    assert addresses.locate(text) == Path(text)
