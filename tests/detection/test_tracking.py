"""Objects followed from frame to frame: who is who, how boxes are smoothed, and when one is forgotten."""

import itertools

import numpy as np
import pytest

from mbnp.detection import boxes
from mbnp.detection.detect import Found
from mbnp.detection.tracking import NONE, follow, pairs

BOX = (0.2, 0.3, 0.5, 0.6)
FAR = (0.7, 0.7, 0.9, 0.95)


def found(*objects):
    """Objects (box, label, score), by falling score, in float32 as a network finds them."""
    objects = sorted(objects, key=lambda one: -one[2])
    boxes, labels, scores = zip(*objects, strict=True) if objects else ((), (), ())
    return Found(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(scores, np.float32))


def moved(box, by):
    return tuple(np.add(box, by))


def test_boxes_and_scores_are_averages_in_which_the_past_fades():
    tracks, box, score = NONE, np.zeros(4), 0.0
    for i in range(12):
        now, sure = moved(BOX, 0.01 * i), 0.6 + 0.03 * (i % 3)
        tracks = follow(tracks, found((now, 3, sure)), smooth=0.7)
        box = np.array(now) if i == 0 else 0.7 * box + 0.3 * np.array(now)
        score = sure if i == 0 else 0.7 * score + 0.3 * sure
        assert tracks.labels.tolist() == [3]
        np.testing.assert_allclose(tracks.boxes[0], box, atol=1e-7)
        assert tracks.scores[0] == pytest.approx(score, abs=1e-7)


def test_an_object_is_forgotten_after_some_frames_without_it():
    tracks = follow(NONE, found((BOX, 0, 0.9), (FAR, 1, 0.8)))
    for i in range(1, 4):
        tracks = follow(tracks, found((FAR, 1, 0.8)), patience=3)
        assert tracks.labels.tolist() == [0, 1]
        assert tracks.missed.tolist() == [i, 0]
        np.testing.assert_allclose(tracks.boxes[0], BOX, atol=1e-7)
    again = follow(tracks, found((BOX, 0, 0.5), (FAR, 1, 0.8)), patience=3)
    assert again.missed.tolist() == [0, 0]
    assert follow(tracks, found((FAR, 1, 0.8)), patience=3).labels.tolist() == [1]
    assert len(follow(again, found(), patience=0).labels) == 0


def test_what_is_weak_goes_on_with_a_track_and_begins_none():
    assert len(follow(NONE, found((BOX, 0, 0.4))).labels) == 0
    tracks = follow(NONE, found((BOX, 0, 0.5)))
    for _ in range(9):
        tracks = follow(tracks, found((BOX, 0, 0.4)))
        assert tracks.missed.tolist() == [0]
    assert tracks.scores[0] == pytest.approx(0.4, abs=1e-3)


def test_classes_are_followed_apart():
    tracks = follow(NONE, found((BOX, 0, 0.9), (moved(BOX, 0.02), 1, 0.8)))
    now = moved(BOX, 0.01)
    tracks = follow(tracks, found((now, 1, 0.9), (now, 0, 0.7)), smooth=0)
    assert tracks.labels.tolist() == [1, 0]
    np.testing.assert_allclose(tracks.boxes, [now, now], atol=1e-7)


def test_an_object_whose_class_changes_is_not_shown_twice():
    tracks = follow(NONE, found((BOX, 0, 0.9), (FAR, 0, 0.7)))
    tracks = follow(tracks, found((moved(BOX, 0.01), 5, 0.9)))
    assert tracks.labels.tolist() == [5, 0]
    assert tracks.missed.tolist() == [0, 1]


def test_two_that_pass_each_other_keep_their_boxes():
    tracks, places = NONE, []
    for i in range(21):
        one, other = (0.04 * i, 0.3, 0.2 + 0.04 * i, 0.5), (0.8 - 0.04 * i, 0.45, 1 - 0.04 * i, 0.65)
        tracks = follow(tracks, found((one, 0, 0.9), (other, 0, 0.8)), smooth=0)
        assert len(tracks.labels) == 2
        places.append(tracks.boxes[:, 0])
    np.testing.assert_allclose(np.diff(places, axis=0), np.tile([0.04, -0.04], (20, 1)), atol=1e-6)


def test_nothing_found_and_nothing_followed():
    for dtype in (np.float32, np.float64):
        empty = Found(np.zeros((0, 4), dtype), np.zeros(0, np.int64), np.zeros(0, dtype))
        assert follow(NONE, empty).boxes.shape == (0, 4)


def test_a_score_that_is_no_number_shows():
    tracks = NONE
    for _ in range(3):
        tracks = follow(tracks, found((BOX, 0, 0.9), ((np.nan,) * 4, 1, np.nan)))
        assert tracks.labels[tracks.missed == 0].tolist() == [0, 1]


def test_nothing_that_is_given_changes():
    first = follow(NONE, found((BOX, 0, 0.9)))
    kept, seen = [a.copy() for a in first], found((moved(BOX, 0.02), 0, 0.7))
    before = [a.copy() for a in seen]
    follow(first, seen)
    for a, b in zip([*first, *seen], [*kept, *before], strict=True):
        np.testing.assert_array_equal(a, b)


def test_pairs_are_the_largest_first():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, m = rng.integers(0, 5, 2)
        overlaps, least = rng.uniform(0, 1, (n, m)), rng.uniform(0.05, 0.9)
        if rng.random() < 0.2:
            overlaps = np.round(overlaps, 1)  # with equal ones
        rows, columns = pairs(overlaps, least)
        used: set = set()
        expected = []
        for value, i, j in sorted((-overlaps[i, j], i, j) for i, j in itertools.product(range(n), range(m))):
            if -value >= least and ("row", i) not in used and ("column", j) not in used:
                used |= {("row", i), ("column", j)}
                expected.append((i, j))
        assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_whatever_is_found_is_shown_near_where_it_is():
    rng, tracks = np.random.default_rng(1), NONE
    for _ in range(200):
        corners = rng.uniform(0, 0.8, (rng.integers(0, 6), 2))
        seen = found(
            *(((*c, *(c + rng.uniform(0.05, 0.2, 2))), int(rng.integers(3)), rng.uniform(0.5, 1)) for c in corners)
        )
        tracks = follow(tracks, seen)
        assert (np.diff(tracks.scores) <= 0).all()
        assert (tracks.missed <= 2).all()
        assert (tracks.missed == 0).sum() == len(corners)
        for box, label in zip(seen.boxes, seen.labels, strict=True):
            near = boxes.overlap(box[None].astype(np.float64), tracks.boxes[tracks.labels == label])
            assert near.max() > 0.3
