"""Fewer tokens in a traced graph: against the same computed by hand, and where none may go."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hwprune.errors import UsageError
from hwprune.structure.torch.analyse import trace
from hwprune.structure.torch.graph import AxisGraph
from tests.structure.token_models import Block, Text, Vision, attention_of, dropped_by_hand, merged_by_hand


def keep(graph: AxisGraph, **kept: int) -> dict[str, torch.Tensor]:
    """`token0=3`: three quarters of the first border's tokens and so on, as masks."""
    found = {}
    for axis in graph.token_axes:
        count = kept.get(f"{axis.form}{axis.place}")
        if count is not None:
            found[axis.name] = torch.arange(axis.size) < count
    assert len(found) == len(kept)
    return found


@pytest.mark.parametrize("class_token", [False, True])
def test_the_places_are_found_without_hints(class_token: bool) -> None:
    graph = trace(Vision(class_token=class_token), (torch.randn(2, 3, 8, 8),))
    assert [axis.form for axis in graph.token_axes] == ["token", "merge"] * 3
    assert {axis.size for axis in graph.token_axes} == {16}  # the class token is none of those that may go
    assert [axis.label for axis in graph.token_axes[::2]] == ["blocks.0.o", "blocks.1.o", "blocks.2.o"]
    assert graph.token_reason is None


@pytest.mark.parametrize("class_token", [False, True])
@torch.no_grad()
def test_dropping_is_what_it_is_by_hand(class_token: bool) -> None:
    torch.manual_seed(1)
    model = Vision(class_token=class_token).eval()
    x = torch.randn(3, 3, 8, 8)
    graph = trace(model, (x,))
    cut = graph.cut(keep(graph, token0=12, token2=8))  # 16 -> 12 -> 6

    expected = []
    for image in x:
        tokens = model.tokens(image[None])[0]
        for place, block in enumerate(model.blocks):
            weights = attention_of(block, tokens)
            q, k, v = block.parts(tokens[None])
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, len(tokens), -1)
            tokens = tokens + block.o(attended)[0]
            if place in (0, 2):
                tokens = tokens[dropped_by_hand(weights, int(class_token), 12 if place == 0 else 6)]
            tokens = block.mlp(tokens[None])[0]
        expected.append(model.answer(tokens[None])[0])
    torch.testing.assert_close(cut(x), torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(cut(x), model(x), atol=1e-3)


@pytest.mark.parametrize("class_token", [False, True])
@torch.no_grad()
def test_merging_is_what_it_is_by_hand(class_token: bool) -> None:
    torch.manual_seed(2)
    model = Vision(class_token=class_token).eval()
    x = torch.randn(3, 3, 8, 8)
    graph = trace(model, (x,))
    cut = graph.cut(keep(graph, merge1=11))

    expected = []
    for image in x:
        tokens = model.tokens(image[None])[0]
        for place, block in enumerate(model.blocks):
            q, k, v = block.parts(tokens[None])
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, len(tokens), -1)
            tokens = tokens + block.o(attended)[0]
            if place == 1:
                tokens = torch.stack(merged_by_hand(tokens, int(class_token), 5))
            tokens = block.mlp(tokens[None])[0]
        expected.append(model.answer(tokens[None])[0])
    torch.testing.assert_close(cut(x), torch.stack(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_goes_first_and_changes_nothing() -> None:
    torch.manual_seed(3)
    model = Text().eval()
    ids, mask = torch.randint(0, 40, (4, 12)), torch.ones(4, 12, dtype=torch.long)
    for row, words in enumerate((5, 6, 3, 6)):
        mask[row, words:] = 0
    graph = trace(model, (ids, mask))
    assert [axis.form for axis in graph.token_axes] == ["token", "token"]  # padding is not merged with words
    cut = graph.cut(keep(graph, token0=6))
    torch.testing.assert_close(cut(ids, mask), model(ids, mask), rtol=1e-4, atol=1e-5)
    fewer = graph.cut(keep(graph, token0=3))  # now words go, too, and the mask goes with them
    assert not torch.allclose(fewer(ids, mask), model(ids, mask), atol=1e-3)
    torch.testing.assert_close(fewer(ids, mask)[2], model(ids, mask)[2], rtol=1e-4, atol=1e-5)  # but for the one that has 3


@torch.no_grad()
def test_nothing_changes_where_all_stay() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = Vision(class_token=True).eval()
    graph = trace(model, (x,))
    everything = {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in graph.token_axes}
    assert torch.equal(graph.cut(everything)(x), graph.module(x))
    assert graph.macs({axis.name: axis.size for axis in graph.token_axes}) == graph.macs({})


@torch.no_grad()
def test_with_heads_branches_and_width() -> None:
    """What else is cut is the same with and without the tokens: the graph is rewritten for both at once."""
    torch.manual_seed(4)
    x = torch.randn(2, 3, 8, 8)
    model = Vision(class_token=False).eval()
    graph = trace(model, (x,))
    heads = {axis.name: torch.tensor([True, False]) for axis in graph.axes if axis.role == "head" and not axis.frozen}
    neurons = {axis.name: torch.arange(axis.size) % 3 > 0 for axis in graph.axes if axis.role == "neuron" and not axis.frozen}
    hidden = {axis.name: torch.arange(axis.size) > 3 for axis in graph.axes if axis.role == "hidden" and not axis.frozen}
    drop = [graph.branches[3].name]
    tokens = keep(graph, token0=10, merge2=12)
    both = graph.cut({**heads, **neurons, **hidden, **tokens}, drop)
    # The other way round: cut first, and trace what is left; its weights are the same.
    first = graph.cut({**heads, **neurons, **hidden}, drop)
    again = trace(copy.deepcopy(first), (x,))
    by_label = {(axis.label, axis.form): axis for axis in again.token_axes}
    second = {by_label[axis.label, axis.form].name: tokens[axis.name] for axis in graph.token_axes if axis.name in tokens}
    torch.testing.assert_close(both(x), again.cut(second)(x), rtol=1e-5, atol=1e-5)
    counts = {name: int(mask.sum()) for name, mask in {**heads, **neurons, **hidden, **tokens}.items()}
    assert graph.macs(counts, 1, drop) == again.macs({name: int(mask.sum()) for name, mask in second.items()})


@torch.no_grad()
def test_a_place_whose_attention_is_dropped_is_none() -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = trace(Vision(class_token=False).eval(), (x,))
    attention = graph.branches[2].name  # of the second block
    axis = next(axis for axis in graph.token_axes if axis.place == 1)
    assert graph.dead_tokens([attention]) == {axis.name for axis in graph.token_axes if axis.place == 1}
    cut = graph.cut({axis.name: torch.arange(axis.size) < 4}, [attention])
    assert torch.equal(cut(x), graph.cut({}, [attention])(x))


def test_it_can_be_trained() -> None:
    torch.manual_seed(5)
    x, y = torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
    graph = trace(Vision(class_token=True), (x,))
    cut = graph.cut(keep(graph, token0=10, merge1=12, token2=6)).train()
    optimizer = torch.optim.Adam(cut.parameters(), 0.01)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(cut(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 4
    assert all(p.grad is not None for p in cut.parameters())


@torch.no_grad()
def test_any_number_of_tokens_becomes_one() -> None:
    model = Text().eval()
    ids, mask = torch.randint(0, 40, (3, 12)), torch.ones(3, 12, dtype=torch.long)
    model.unused = nn.Linear(2, 2)
    model.register_buffer("passing", torch.ones(3), persistent=False)
    graph = trace(model, (ids, mask))
    assert graph.module.meta["free_length"]
    assert graph.cut({})(ids[:, :9], mask[:, :9]).shape == (3, 3)
    cut = graph.cut(keep(graph, token0=8))
    assert not cut.meta["free_length"]
    cut.load_state_dict(graph.cut({}).state_dict())  # the same names, of what nothing reads, too
    assert cut(ids[:1], mask[:1]).shape == (1, 3)  # the batch is as free as it was
    assert cut(ids.repeat(3, 1), mask.repeat(3, 1)).shape == (9, 3)
    # In proportion to the tokens, but for attention, which has their square.
    assert 0.6 < graph.macs({graph.token_axes[0].name: 6}) / graph.macs({}) < 0.9


class Relative(Vision):
    """A table of positions in every block, as in Swin and T5."""

    def __init__(self) -> None:
        super().__init__(class_token=False)
        self.bias = nn.Parameter(torch.randn(1, 2, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x, self.bias)
        return self.answer(x)


class EachToken(Vision):
    """An answer for every token."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.norm(x))
        return y


class LastToken(Vision):
    def answer(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.norm(x)[:, -1])
        return y


class Mixing(Vision):
    """Attention, and behind it a layer over the tokens."""

    def __init__(self) -> None:
        super().__init__(class_token=False)
        self.mix = nn.Linear(16, 16)

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return super().answer(x + self.mix(x.transpose(1, 2)).transpose(1, 2))


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(16, 2), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.block.parts(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        z: torch.Tensor = self.head((x + self.block.o(y.transpose(1, 2).reshape(x.shape))).mean(dim=1))
        return z


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (EachToken(class_token=False), (2, 3, 8, 8)), (LastToken(class_token=False), (2, 3, 8, 8)),
        (Mixing(), (2, 3, 8, 8)), (Causal(), (2, 7, 16)), (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (2, 3, 8, 8)),
    ],
    ids=["each", "last", "mixing", "causal", "none"],
)  # fmt: skip
def test_tokens_that_are_needed_by_number_stay(model: nn.Module, shape: tuple[int, ...]) -> None:
    graph = trace(model, (torch.randn(*shape),))
    assert graph.token_axes == ()
    assert graph.token_reason
    with pytest.raises(UsageError):
        graph.cut({"add_1:token": torch.arange(16) < 8})


@torch.no_grad()
def test_a_table_of_positions_keeps_the_tokens_as_long_as_it_is_read() -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = trace(Relative().eval(), (x,))
    assert {axis.label for axis in graph.token_axes} == {"blocks.2.o"}
    assert graph.cut(keep(graph, token2=4))(x).shape == (2, 5)


class Middle(Vision):
    """An answer for every token of the first blocks, and one for the image."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        x = self.tokens(x)
        for block in self.blocks[:2]:
            x = block(x)
        each = self.head(self.norm(x))
        return each, self.answer(self.blocks[2](x))


@torch.no_grad()
def test_tokens_may_go_behind_the_last_place_that_needs_all() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = Middle(class_token=False).eval()
    graph = trace(model, (x,))
    assert {axis.label for axis in graph.token_axes} == {"blocks.2.o"}
    first, second = graph.cut(keep(graph, token2=4))(x)
    assert torch.equal(first, model(x)[0])
    assert second.shape == (2, 5)


class Registers(Vision):
    """Four registers in front, which are left out of the mean."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.norm(x)[:, 4:].mean(dim=1))
        return y


class Numbers(Vision):
    """The number of the token that says most."""

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return x.max(dim=1).indices


class Aside(Vision):
    """Two attentions on one tensor, of which one only goes out."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        x = self.blocks[0](self.tokens(x))
        q, k, v = self.blocks[2].parts(x)
        seen = F.scaled_dot_product_attention(q, k, v).mean(dim=(1, 2))
        return seen, self.answer(self.blocks[1](x))


@torch.no_grad()
def test_what_other_people_s_models_do_with_tokens() -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = trace(Registers(class_token=False).eval(), (x,))
    assert {axis.size for axis in graph.token_axes} == {12}
    assert graph.cut(keep(graph, token1=6))(x).shape == (2, 5)
    assert trace(Numbers(class_token=False).eval(), (x,)).token_axes == ()
    graph = trace(Aside(class_token=False).eval(), (x,))
    assert len({axis.name for axis in graph.token_axes}) == len(graph.token_axes) > 0
    model, cut = Aside(class_token=False).eval(), graph.cut(keep(graph, **{f"token{graph.token_axes[-2].place}": 5}))
    assert [tuple(out.shape) for out in cut(x)] == [tuple(out.shape) for out in model(x)]


class Pairs(Text):
    """A mask that lets padding see nothing: its rows of the attention have no key."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        present = mask > 0
        both = self.seen(present[:, None, :, None] & present[:, None, None, :])
        for block in self.blocks:
            x = block(x, both)
        weight = mask[:, :, None].to(x.dtype)
        y: torch.Tensor = self.head((x * weight).sum(dim=1) / weight.sum(dim=1))
        return y

    def seen(self, both: torch.Tensor) -> torch.Tensor:
        return both


class Minus(Pairs):
    """The same, as numbers that are added."""

    def seen(self, both: torch.Tensor) -> torch.Tensor:
        return torch.zeros(both.shape).masked_fill(~both, -torch.inf)


@pytest.mark.parametrize("kind", [Pairs, Minus])
@torch.no_grad()
def test_padding_that_sees_nothing_has_no_say(kind: type[Pairs]) -> None:
    torch.manual_seed(7)
    model = kind().eval()
    ids, mask = torch.randint(0, 40, (4, 12)), torch.ones(4, 12, dtype=torch.long)
    for row, words in enumerate((5, 6, 3, 6)):
        mask[row, : 12 - words] = 0  # in front: what is kept by number alone would be padding
    graph = trace(model, (ids, mask))
    cut = graph.cut(keep(graph, token0=6))
    torch.testing.assert_close(cut(ids, mask), model(ids, mask), rtol=1e-4, atol=1e-5)
    # And what padding is asked changes nothing: other words there, the same choice.
    fewer, other = graph.cut(keep(graph, token0=3)), torch.where(mask > 0, ids, torch.randint(0, 40, (4, 12)))
    torch.testing.assert_close(fewer(other, mask), fewer(ids, mask), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_batch_stays_free_where_it_is_exported_again() -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = trace(Vision(class_token=False).eval(), (x,))
    cut = graph.cut(keep(graph, token0=9, merge1=13))
    program = torch.export.export(cut, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    more = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(more), cut(more))
