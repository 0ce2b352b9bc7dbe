"""Downloads against a server that drops connections, ignores ranges, or serves the wrong file."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import zipfile

import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.data.reading import download
from rec2pm_jax.data.reading.download import Download, fetch
from rec2pm_jax.data.sources import amazon, kuairand, lastfm, movielens, yambda
from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import alone_in
from tests.helpers import raw_files
from tests.helpers.archives import make_movielens_zip, make_targz

DATA = bytes(range(256)) * 4000


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes); a response is cut after `limit` bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.limit, self.ranges, self.asked = {}, None, True, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        data = server.files.get(self.path)
        asked = self.headers.get("Range")
        server.asked.append((self.path, asked))
        if data is None:
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=")[:-1]) if asked and server.ranges else 0
        if start and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if asked and server.ranges else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: server.limit])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with Server() as instance:
        threading.Thread(target=instance.serve_forever, args=(0.01,), daemon=True).start()
        yield instance
        instance.shutdown()


def get(server, tmp_path, **fields):
    item = Download(f"{server.url}/a.bin", **fields)
    return fetch(item, tmp_path, "https://example.org", progress=False)


MD5 = hashlib.md5(DATA).hexdigest()


def test_a_dropped_connection_resumes(server, tmp_path):
    server.files["/a.bin"], server.limit = DATA, 400_000
    assert get(server, tmp_path, md5=MD5).read_bytes() == DATA
    assert [r for _, r in server.asked] == [None, "bytes=400000-", "bytes=800000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    get(server, tmp_path, md5=MD5)
    assert len(server.asked) == 3  # nothing is fetched twice


def test_a_stopped_command_resumes(server, tmp_path):
    server.files["/a.bin"] = DATA
    (tmp_path / "a.bin.part").write_bytes(DATA[:300_000])
    assert get(server, tmp_path, md5=MD5).read_bytes() == DATA
    assert server.asked == [("/a.bin", "bytes=300000-")]


def test_a_server_that_ignores_ranges_starts_over(server, tmp_path):
    server.files["/a.bin"], server.ranges = DATA, False
    (tmp_path / "a.bin.part").write_bytes(b"something else")
    assert get(server, tmp_path, md5=MD5).read_bytes() == DATA


@pytest.mark.parametrize("part", [DATA, DATA + b"more"])
def test_a_part_that_is_whole_or_too_long(server, tmp_path, part):
    server.files["/a.bin"] = DATA
    (tmp_path / "a.bin.part").write_bytes(part)
    assert get(server, tmp_path, md5=MD5).read_bytes() == DATA


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_published_checksums(server, tmp_path, algorithm):
    digest = hashlib.new(algorithm, DATA).hexdigest()
    server.files["/a.bin"] = DATA
    server.files["/sum"] = {
        "md5": f"MD5 (a.bin) = {digest}\n",
        "sha256": f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 7\n",
    }[algorithm].encode()
    assert get(server, tmp_path, checksum_url=f"{server.url}/sum").read_bytes() == DATA
    server.files["/a.bin"] = b"x" + DATA[1:]
    (tmp_path / "a.bin").unlink()
    with pytest.raises(UserError, match=f"its publisher states {digest}; the file was deleted"):
        get(server, tmp_path, checksum_url=f"{server.url}/sum")
    assert list(tmp_path.iterdir()) == []


def test_a_checksum_page_without_one(server, tmp_path):
    server.files |= {"/a.bin": DATA, "/sum": b"<html>moved</html>"}
    with pytest.raises(UserError, match="/sum holds no checksum"):
        get(server, tmp_path, checksum_url=f"{server.url}/sum")


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with pytest.raises(UserError) as error:
        fetch(Download("http://127.0.0.1:9/a.bin"), tmp_path, "https://example.org", False)
    text = str(error.value)
    assert "Cannot download http://127.0.0.1:9/a.bin" in text and "Check the network" in text
    assert "by hand (https://example.org) and give --input" in text


def test_a_server_that_fails_for_good_keeps_the_part(server, tmp_path):
    server.files["/a.bin"] = DATA
    (tmp_path / "a.bin.part").write_bytes(DATA[:1000])
    server.limit = 0
    with pytest.raises(UserError, match=r"1,000 bytes are kept in .*a.bin.part; run the command"):
        get(server, tmp_path, md5=MD5)


def test_not_found(server, tmp_path):
    with pytest.raises(UserError, match="Not Found"):
        get(server, tmp_path)


def prepared(server, monkeypatch, tmp_path, module, archive, data, variant, **options):
    """Prepare from the module's download, redirected to the local server."""
    server.files[f"/{archive}"] = data

    def downloads(name):
        return tuple(
            Download(f"{server.url}/{item.name}", unpack=item.unpack) for item in real(name)
        )

    real = module.SOURCE.downloads
    monkeypatch.setitem(module.SOURCE.__dict__, "downloads", downloads)
    info, _ = prepare(
        PrepareOptions(
            module.SOURCE.name,
            str(tmp_path / "out"),
            variant=variant,
            download_dir=str(tmp_path / "downloads"),
            progress=False,
            **options,
        )
    )
    return info, open_dataset(tmp_path / "out")


@pytest.mark.parametrize("variant", ["1m", "20m", "25m", "32m"])
def test_movielens_archives(server, monkeypatch, tmp_path, variant):
    archive = f"ml-{variant}.zip"
    data = make_movielens_zip(archive)
    info, dataset = prepared(server, monkeypatch, tmp_path, movielens, archive, data, variant)
    assert (info["users"], info["events"]) == (2, 3)
    assert dataset.items.titles[1] in ("Misérables, Les (1995)", "Fiction, Pulp (1994)")
    found = sorted(p.name for p in (tmp_path / "downloads/movielens" / variant).iterdir())
    suffix = "dat" if variant == "1m" else "csv"
    expected = [f"movies.{suffix}", f"ratings.{suffix}", archive, f"{archive}.unpacked"]
    assert found == sorted(expected)


@pytest.mark.parametrize("variant", ["1k", "27k"])
def test_kuairand_archives(server, monkeypatch, tmp_path, variant):
    data = make_targz(raw_files.kuairand(tmp_path / "raw", variant))
    archive = f"KuaiRand-{variant.upper()}.tar.gz"
    info, _ = prepared(server, monkeypatch, tmp_path, kuairand, archive, data, variant)
    assert info["events"] == 4
    assert not list((tmp_path / "downloads").rglob("user_features*"))


def test_lastfm_archive(server, monkeypatch, tmp_path):
    data = make_targz(raw_files.lastfm(tmp_path / "raw"))
    archive = "lastfm-dataset-1K.tar.gz"
    info, _ = prepared(server, monkeypatch, tmp_path, lastfm, archive, data, "1k")
    assert info["events"] == 4


def test_yambda_and_amazon_files(server, monkeypatch, tmp_path):
    data = raw_files.yambda(tmp_path / "raw", "listens").read_bytes()
    info, _ = prepared(server, monkeypatch, tmp_path, yambda, "listens.parquet", data, "50m")
    assert info["events"] == 2
    data = raw_files.amazon(tmp_path / "raw", raw=False).read_bytes()
    variant = "5core/Software"
    info, _ = prepared(
        server, monkeypatch, tmp_path, amazon, "Software.csv.gz", data, variant, overwrite=True
    )
    assert info["events"] == 2


def test_archives_that_are_damaged_or_lack_a_file(server, tmp_path):
    server.files["/a.zip"] = make_movielens_zip("ml-1m.zip")
    item = Download(f"{server.url}/a.zip", unpack=("ratings.dat", "ratings.csv"))
    with pytest.raises(UserError, match=r"a.zip holds no ratings.csv"):
        fetch(item, tmp_path / "a", "page", progress=False)
    server.files["/b.zip"] = server.files["/a.zip"][:-30]
    item = Download(f"{server.url}/b.zip", unpack=("ratings.dat",))
    with pytest.raises(UserError, match="b.zip is damaged"):
        fetch(item, tmp_path / "b", "page", progress=False)
    server.files["/c.tar.gz"] = make_targz(raw_files.lastfm(tmp_path / "raw"))[:-40]
    item = Download(f"{server.url}/c.tar.gz", unpack=(lastfm.TABLE,))
    with pytest.raises(UserError, match="c.tar.gz is damaged"):
        fetch(item, tmp_path / "c", "page", progress=False)


def test_a_path_in_an_archive_cannot_leave_the_directory(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../ratings.dat", "x")
    server.files["/a.zip"] = buffer.getvalue()
    item = Download(f"{server.url}/a.zip", unpack=("ratings.dat",))
    fetch(item, tmp_path / "deep" / "er", "page", progress=False)
    assert (tmp_path / "deep" / "er" / "ratings.dat").is_file()
    assert not (tmp_path / "ratings.dat").exists()


def test_two_downloads_to_one_directory_are_refused(server, tmp_path):
    with (
        alone_in(tmp_path.with_name(f"{tmp_path.name}.downloading")),
        pytest.raises(UserError, match="The directory .* is in use by another process"),
    ):
        fetch(Download(f"{server.url}/a.bin"), tmp_path, "page", progress=False)


def test_a_full_disk_is_one_line(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rec2pm_jax.data.reading.download._append_rest", full)
    with pytest.raises(UserError, match=r"Cannot write .*a.bin: no room left on its disk\."):
        fetch(Download(f"{server.url}/a.bin"), tmp_path, "page", progress=False)
