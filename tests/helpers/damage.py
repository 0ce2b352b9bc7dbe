"""Random damage to the bytes of a file."""

from __future__ import annotations

from hypothesis import strategies as st

JUNK = [b"\x00", b"\xff\xfe", b'"', b",", b"\n", b"\r\n", b"\t", b"{", b"}", b"\\", b"::", b"-1"]
JUNK += [b"1e999", b"nan", b"null", b"99999999999999999999", b"\xef\xbb\xbf", b'"a":{"b":1},']


@st.composite
def damages(draw):
    """Draw a function that damages bytes: cuts, flips, repeats, deletes or inserts."""
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["cut", "byte", "delete", "repeat", "insert", "noise"]),
                st.floats(0, 1, exclude_max=True),
                st.integers(1, 40),
                st.sampled_from(JUNK),
                st.integers(0, 255),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def damage(data: bytes) -> bytes:
        for kind, place, length, junk, byte in edits:
            i = int(place * len(data))
            j = min(len(data), i + length)
            head, part, tail = data[:i], data[i:j], data[j:]
            part = {
                "cut": b"",
                "byte": bytes([byte]) + part[1:],
                "delete": b"",
                "repeat": part + part,
                "insert": junk + part,
                "noise": bytes((b * 167 + byte) % 256 for b in part),
            }[kind]
            data = head + part + (b"" if kind == "cut" else tail)
        return data

    return damage
