"""Archives as the publishers of datasets pack them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path


def make_movielens_zip(name: str) -> bytes:
    """Return an archive as GroupLens packs it, with files that the reader does not need."""
    folder, buffer = name.removesuffix(".zip"), io.BytesIO()
    if name == "ml-1m.zip":
        files = {
            "ratings.dat": b"1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n",
            "movies.dat": "1193::Misérables, Les (1995)::Drama|Musical\n".encode("latin-1"),
            "users.dat": b"1::F::1::10::48067\n",
        }
    else:
        files = {
            "ratings.csv": b"userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n"
            b"1,306,3.5,1147868817\n2,296,0.5,1147868828\n",
            "movies.csv": b'movieId,title,genres\n296,"Fiction, Pulp (1994)",Comedy|Crime\n',
            "tags.csv": b"userId,movieId,tag,timestamp\n",
        }
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in files.items():
            archive.writestr(f"{folder}/{file}", text)
    return buffer.getvalue()


def make_targz(folder: Path) -> bytes:
    """Return a .tar.gz of a folder's contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, arcname=path.name)
    return buffer.getvalue()
