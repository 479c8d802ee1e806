"""The layouts of a data directory's files: which rows and columns the repository should see in them."""

from __future__ import annotations

from pathlib import Path

from chromakeep.chroma import catalog, hnsw
from chromakeep.errors import SourceBroken
from chromakeep.layout import FLOAT32, PLAIN, Column, Layout, plain


def file_layouts(directory: Path) -> dict[str, Layout]:
    """Relative POSIX path -> layout, of chroma.sqlite3 and every file of the live VECTOR segments.

    Whatever else lies in the directory is not Chroma's state and is left out: directories of deleted collections
    (Chroma never removes them), journals, hidden and foreign files. A header that cannot be believed makes its elements
    plain. Raises NotAChromaDirectory and SourceBroken.
    """
    layouts = {catalog.DATABASE: plain(_page_size(directory / catalog.DATABASE))}
    with catalog.Catalog(directory) as known:
        segments = [entry.vector_segment for entry in known.entries if entry.vector_segment]
    for segment in segments:
        for name in hnsw.FILES:
            path = directory / segment / name
            if path.is_file() and not path.is_symlink():
                layouts[f"{segment}/{name}"] = element_layout(path.parent) if name == hnsw.LEVEL0 else plain()
    return layouts


def element_layout(segment: Path) -> Layout:
    """Columns links | vector | label of data_level0.bin, or plain when header.bin does not explain the file."""
    try:
        header = hnsw.parse_header((segment / hnsw.HEADER).read_bytes()[:4096])
    except (SourceBroken, OSError):
        return plain()
    columns = (Column(header.vector_offset, PLAIN), Column(4 * header.dimension, FLOAT32), Column(8, PLAIN))
    return Layout(header.element_size, columns)


def _page_size(database: Path) -> int:
    """From bytes 16-17 of the SQLite header (https://www.sqlite.org/fileformat2.html); 4096 when they make no sense."""
    with database.open("rb") as file:
        size = int.from_bytes(file.read(18)[16:], "big")
    size = 65536 if size == 1 else size
    return size if size >= 512 and size & (size - 1) == 0 else 4096
