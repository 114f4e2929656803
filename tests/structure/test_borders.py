"""How many tokens are left where some go, and where a graph has places for it."""

from hwprune.structure import borders
from hwprune.structure.borders import Border, TokenAxis
from hwprune.structure.branches import Dag
from hwprune.structure.dims import ONE, Concat, Space
from hwprune.structure.scope import Value


def chain(places: int = 3, size: int = 16) -> list[TokenAxis]:
    return [TokenAxis(f"n{i}:{form}", form, size, f"a{i}", i, "") for i in range(places) for form in borders.FORMS]


def test_a_share_of_those_that_arrive_goes() -> None:
    assert borders.left("token", 16, 0.75) == 12
    assert borders.left("token", 12, 0.75) == 9
    assert borders.left("token", 3, 0.01) == 1  # never none
    assert borders.left("merge", 16, 0.75) == 12
    assert borders.left("merge", 16, 0.1) == 8  # every second one is there to be merged into
    assert borders.left("merge", 15, 0.1) == 7


def test_what_goes_at_one_place_is_gone_at_all_that_follow() -> None:
    axes = chain()
    assert borders.counts(axes, {}) == {}
    assert borders.counts(axes, {"n1:token": 16}) == {}  # all stay
    assert borders.counts(axes, {"n1:token": 8}) == {"n1:token": 8, "n1:merge": 8, "n2:token": 8, "n2:merge": 8}
    found = borders.counts(axes, {"n0:merge": 12, "n1:token": 8, "n2:merge": 12})
    assert list(found.values()) == [12, 6, 6, 6, 4]


def test_only_what_takes_some_away_reduces() -> None:
    here = {i: Border(f"n{i}", (), f"a{i}", frozenset(), i, f"n{i}", 17, 1) for i in range(3)}
    found = borders.reductions(chain(), here, {"n0:token": 12, "n1:merge": 16, "n2:token": 15})
    assert {name: (r.fixed, r.arriving, r.left) for name, r in found.items()} == {
        "n0:token": (1, 16, 12), "n2:token": (1, 12, 11),
    }  # fmt: skip
    # Of one token that is left none can go.
    assert set(borders.reductions(chain(), here, {"n0:token": 1, "n1:token": 1})) == {"n0:token"}


def graph(space: Space, *, other: bool) -> tuple[Dag, dict[str, Value | None], dict[str, Value]]:
    """x -> attention -> sum with x -> product with a weight -> out; ``other``: x is read again behind it."""
    n, t, d = space.leaf(1009), space.leaf(7), space.leaf(8)
    h = space.leaf(2)
    flags = (False, False, False)
    nodes = {
        "image": [], "w1": [], "w2": [], "x": ["image", "w1"], "scores": ["x"], "mixed": ["scores", "x"], "sum": ["mixed", "x"],
        "up": ["sum", "w2"], "out": ["up", "x"] if other else ["up"],
    }  # fmt: skip
    values: dict[str, Value | None] = {name: Value((n, t, d), flags) for name in ("image", "x", "mixed", "sum", "up", "out")}
    dag = Dag(nodes, ["out"], {"w1": "w1", "w2": "w2"}, frozenset({"w1", "w2"}), {}, frozenset(values), {})
    return dag, values, {"scores": Value((n, h, t, t), (False,) * 4)}


def test_a_place_is_where_one_tensor_goes_on() -> None:
    space = Space()
    dag, values, scores = graph(space, other=False)
    (border,) = borders.find(dag, {"image"}, values, scores, space)
    assert (border.main, border.attention, border.tokens, border.fixed) == ("sum", "scores", 7, 0)
    assert border.before == {"w1"}
    dag, values, scores = graph(Space(), other=True)  # x crosses, too
    assert borders.find(dag, {"image"}, values, scores, space) == []


def test_a_class_token_in_front_is_known() -> None:
    space = Space()
    patches = space.leaf(16)
    assert borders.leading(Concat((ONE, patches))) == 1
    assert borders.leading(Concat((ONE, ONE, patches))) == 2
    assert borders.leading(Concat((patches, ONE))) == 0
    assert borders.leading(patches) == 0
