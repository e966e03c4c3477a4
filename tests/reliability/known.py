"""Rows that the library does not handle as catalogued.

``KNOWN`` are faults: their tests are strict expected failures, so that a fix forces its removal here.
``DEVIATIONS`` are decisions: the row as implemented, and why the catalogue is not followed.
"""

KNOWN: dict[str, str] = {}
"""Case -> reason."""

DEVIATIONS = {
    44: "near-duplicates are reported on request only, by detrs check --near-duplicates: exact duplicates are reported",
    75: "W in the catalogue; composition on white is the documented rule and the same as for row 74, which is A",
    76: "E unless a scaling option is given; here the range is fixed by the bit depth, so nothing is clipped",
    77: "E in the catalogue; floats in [0, 1] have a defined range and are accepted, all others are errors",
    84: "84 to 87, 91, 92: one such file among at least 100 is skipped with a count, as any unreadable image",
    89: "arithmetic JPEG is not tested: no common program writes it",
    93: "a link out of the folder is A, not W: the usual way to keep images on another disk; the annotation file "
    "cannot name such a path (row 37)",
    98: "tested as fault F9, with a shorter time limit",
    100: "classes are matched by name (--weights), and the log lists the kept and the new ones",
    101: "A for official files; detrs saves unwrapped models, so a checkpoint of its own with such names is E",
    110: "tested without a GPU by a kernel that is forced on the wrong device; never a silent fallback",
}
"""Row -> reason."""

KNOWN_FAULTS: dict[tuple[str, str], str] = {}
"""(fault, moment) -> reason; an empty moment stands for all."""
KNOWN_ATTACKS: dict[str, str] = {}
"""Id of a test in ``test_attacks.py`` -> reason."""
