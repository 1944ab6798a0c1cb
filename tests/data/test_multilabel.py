"""Class names of a source to labels."""

from smalti.data.datasets.labels import label_names, shown_labels


def test_names_of_several_labels_are_taken_apart() -> None:
    classes = ("cat", "cat|dog", "dog | cat|", "|", "bird")
    names = label_names(classes)
    assert names == ("bird", "cat", "dog")
    assert shown_labels(classes, names).tolist() == [[0, 1, 0], [0, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]]
