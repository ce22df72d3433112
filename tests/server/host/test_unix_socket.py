"""Files of Unix-domain sockets: new ones, stale ones, and those of other processes."""

import os
import socket
import stat

import pytest

from server.host.listening import CannotListen
from server.host.unix_socket import MAX_PATH_BYTES, UnixSocket


def listening(found):
    """A socket that listens where the UnixSocket says, as gRPC would."""
    opened = socket.socket(socket.AF_UNIX)
    with found.binding() as name:
        opened.bind(name)
        opened.listen()
    return opened


def connects(path):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


@pytest.mark.parametrize("stale", [False, True])
def test_the_owner_and_the_group_can_connect_to_a_new_or_a_stale_file(socket_path, stale):
    if stale:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(socket_path))
        assert not connects(socket_path)
    found = UnixSocket(socket_path)
    with listening(found):
        assert connects(socket_path)
        assert stat.filemode(socket_path.stat().st_mode) == "srw-rw----"
        assert list(socket_path.parent.iterdir()) == [socket_path]
    found.remove()
    assert not socket_path.exists()


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"\xff")])
def test_a_name_that_grpc_cannot_take_is_refused(socket_path, name):
    with pytest.raises(CannotListen, match="found control characters or bytes that are not UTF-8"):
        UnixSocket(socket_path.with_name(name))


def test_the_socket_of_a_server_that_listens_is_left_alone(socket_path):
    with listening(UnixSocket(socket_path)):
        with pytest.raises(CannotListen) as error:
            UnixSocket(socket_path)
        assert connects(socket_path)
    assert str(error.value) == (
        f"cannot listen on unix:{socket_path}: another process listens there; --listen chooses another"
    )


def test_a_server_that_stops_leaves_the_socket_of_its_successor(socket_path):
    first = UnixSocket(socket_path)
    listening(first).close()
    with listening(UnixSocket(socket_path)):
        first.remove()
        assert connects(socket_path)


def test_other_files_are_not_replaced(socket_path):
    socket_path.write_text("precious")
    with pytest.raises(CannotListen, match="found a file that is not a socket"):
        UnixSocket(socket_path)
    assert socket_path.read_text() == "precious"


def test_a_directory_has_to_exist(socket_path):
    with pytest.raises(CannotListen, match="No such file or directory; --listen chooses another"):
        UnixSocket(socket_path / "below")


def test_a_path_can_be_as_long_as_the_system_allows(socket_path):
    directory = socket_path.parent
    path = directory / ("x" * (MAX_PATH_BYTES - len(str(directory)) - 1))
    with listening(UnixSocket(path)):
        assert connects(path)
    with pytest.raises(CannotListen, match=f"found a path of {MAX_PATH_BYTES + 1} bytes, expected at most"):
        UnixSocket(directory / f"{path.name}x")
