"""Entities in tagged sentences: CoNLL's reading of IOB1, IOB2 and BIOES tags, and their F1."""

from __future__ import annotations

from collections.abc import Sequence

_PREFIXES = ("B-", "I-", "E-", "S-")
Span = tuple[str, int, int]  # type, first word, last word


def has_entities(tags: Sequence[str]) -> bool:
    """Whether tags are of the kind B-PER, I-PER, O; parts of speech are not."""
    return all(tag == "O" or tag[:2] in _PREFIXES for tag in tags) and any(tag != "O" for tag in tags)


def entities(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence, by the rules of the conlleval script (and of seqeval's default mode).

    B and S begin one, E and S end one; so do a change of type and, for what is ill-formed, I or E after O, E or S.
    """
    found: list[Span] = []
    last, last_type, begin = "O", "", 0
    for at, tag in enumerate([*tags, "O"]):
        kind, type_ = tag[:1], tag[2:] if tag != "O" else ""
        changed = type_ != last_type
        inside = last != "O"
        if inside and (last in "ES" or kind in "BSO" or changed):
            found.append((last_type, begin, at - 1))
        if kind != "O" and (kind in "BS" or last in "ESO" or changed):
            begin = at
        last, last_type = kind, type_
    return found


def to_bioes(tags: Sequence[str]) -> list[str]:
    """The same entities with B, I, O, E and S, which tell begin, end and single words apart.

    Raises ValueError that names a tag that is no entity's.
    """
    for tag in tags:
        if tag != "O" and not (tag[:2] in _PREFIXES and len(tag) > 2):
            raise ValueError(f"{tag!r} is none of O, B-..., I-..., E-..., S-...")
    made = ["O"] * len(tags)
    for type_, first, last in entities(tags):
        made[first : last + 1] = [f"I-{type_}"] * (last + 1 - first)
        made[first], made[last] = f"B-{type_}", f"E-{type_}"
        if first == last:
            made[first] = f"S-{type_}"
    return made


def entity_scores(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """`precision`, `recall` and `f1` over the entities of all sentences; right is the same type and the same words."""
    right = wanted = given = 0
    for tags, guesses in zip(gold, found, strict=True):
        mine, theirs = set(entities(tags)), set(entities(guesses))
        right, wanted, given = right + len(mine & theirs), wanted + len(mine), given + len(theirs)
    precision, recall = right / given if given else 0.0, right / wanted if wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
