"""Results, networks and tokenizers as a notebook shows them."""

from smalti.core.notebook import Result, facts_table

NASTY = "<script>alert(1)</script>&"


def test_a_result_is_a_dict_and_a_table() -> None:
    result = Result({"loss_nats": 1.23456, "steps": 12000, "elbo": None, "probe": {"knn": 0.5}, "classes": ["a", "b"]})
    assert result == {"loss_nats": 1.23456, "steps": 12000, "elbo": None, "probe": {"knn": 0.5}, "classes": ["a", "b"]}
    html = result._repr_html_()
    for text in ("loss_nats", ">1.235<", ">12,000<", ">-<", ">0.5<", "a, b"):
        assert text in html


def test_all_texts_are_escaped() -> None:
    html = facts_table({NASTY: NASTY, "inside": {NASTY: [NASTY]}}, NASTY)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;") == 5


def test_what_is_long_is_cut() -> None:
    html = facts_table({"list": list(range(20)), "table": {str(n): n for n in range(11)}, "flag": True})
    assert "7, and 12 more" in html
    assert "and 3 more" in html
    assert ">True<" in html
