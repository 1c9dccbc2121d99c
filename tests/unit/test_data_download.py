"""Downloads, from this machine alone: checksums, cut transfers, and nothing half-written."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from delta.data.cifar import CIFAR10, CIFAR100, download_cifar
from delta.data.download import Download, download
from delta.errors import DataError

CONTENT = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.hits.append(self.path)
        if self.path == "/absent.bin":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/silent.bin":
            self.server.released.wait(20)
        elif self.path == "/cut.bin":
            self.wfile.write(CONTENT[:100_000])
        else:
            self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.hits, httpd.released = [], threading.Event()
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.released.set()
        httpd.shutdown()
        thread.join()


def url(server, name):
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


def test_a_file_is_fetched_once(server, tmp_path):
    source = Download(url(server, "data.bin?version=2"), SHA256)
    path = download(source, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "data.bin"
    assert path.read_bytes() == CONTENT
    assert download(source, path.parent) == path
    assert len(server.hits) == 1
    path.write_bytes(b"damaged")
    download(source, path.parent)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]


@pytest.mark.parametrize(
    ("name", "digest", "timeout", "reason"),
    [
        ("data.bin", "0" * 64, 30.0, "wrong checksum"),
        ("cut.bin", SHA256, 30.0, "cut after 100000 of 2304000 bytes"),
        ("absent.bin", SHA256, 30.0, "the server answered 404"),
        ("silent.bin", SHA256, 0.2, "timed out"),
    ],
)
def test_a_failed_transfer_leaves_nothing(server, tmp_path, name, digest, timeout, reason):
    with pytest.raises(DataError, match=reason) as error:
        download(Download(url(server, name), digest), tmp_path, timeout_s=timeout)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_transfer_keeps_the_earlier_file(server, tmp_path):
    (tmp_path / "cut.bin").write_bytes(b"earlier")
    with pytest.raises(DataError, match="cut"):
        download(Download(url(server, "cut.bin"), SHA256), tmp_path)
    assert (tmp_path / "cut.bin").read_bytes() == b"earlier"


def test_nobody_listens(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(DataError, match="not reachable"):
            download(Download(f"http://127.0.0.1:{taken.getsockname()[1]}/x", SHA256), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_folders_and_schemes(tmp_path):
    (tmp_path / "source.bin").write_bytes(CONTENT)
    source = Download((tmp_path / "source.bin").as_uri(), SHA256)
    assert download_cifar(CIFAR10, tmp_path / "to", source=source).read_bytes() == CONTENT
    with pytest.raises(DataError, match="nothing was written"):
        download(source, tmp_path / "source.bin" / "below")
    with pytest.raises(DataError, match="not reachable"):
        download(Download((tmp_path / "absent.bin").as_uri(), SHA256), tmp_path)
    with pytest.raises(DataError, match="expected a URL of https"):
        download(Download("ftp://127.0.0.1/x", SHA256), tmp_path)


def test_the_official_sources():
    for layout, name in ((CIFAR10, "cifar-10-binary.tar.gz"), (CIFAR100, "cifar-100-binary.tar.gz")):
        assert layout.source.url == f"https://www.cs.toronto.edu/~kriz/{name}"
        assert layout.source.file_name == name
        assert len(bytes.fromhex(layout.source.sha256)) == 32
