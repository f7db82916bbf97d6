"""Law: a drafted tree of which a path is accepted leaves what so many single steps leave, of every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from headwise.engine.drafted import NODES, accept, begin_drafted, chains_only, nodes_left, room
from headwise.engine.session import Session
from headwise.errors import HeadwiseError, SessionError
from headwise.forms import Tree
from tests.contract.drive import Text, columns, decode, everything, geometry, layer_by_layer, small
from tests.contract.test_drafted import PROMPT, TOKENS, assert_alike, opened
from tests.fuzz.state import differences, state

# How guesses follow each other, and the path that is right: a side branch, the first branch, and none but the token
# that is certain; branches that leave late, and nodes that are no depth-first order.
SHAPES: Sequence[tuple[tuple[int, ...], tuple[int, ...]]] = (
    ((-1, 0, 1, 2, 0, 4, 5), (0, 4, 5, 6)),
    ((-1, 0, 0, 0, 1, 2, 3, 5), (0, 2, 5, 7)),
    ((-1, 0, 1, 0), (0, 1, 2)),
    ((-1, 0, 0), (0,)),
    ((-1, 0, 1, 2, 2, 1), (0, 1, 2, 4)),
    ((-1, 0, 1, 1, *[0] * 40), (0, 1, 3)),
)


def selects(name: str) -> bool:
    return small(name).select is not None


def mixed(text: Text, wrong: Text, start: int, tokens: int, path: Sequence[int]) -> Text:
    """`tokens` nodes of which those on the path are the text's next and all others are wrong."""
    parts = []
    for own, other in ((text.q, wrong.q), (text.k, wrong.k), (text.v, wrong.v)):
        nodes = other[..., start : start + tokens, :].clone()
        nodes[..., list(path), :] = own[..., start : start + len(path), :]
        parts.append(nodes)
    return Text(*parts)


def by_trees(session: Session, text: Text, wrong: Text) -> torch.Tensor:
    """TOKENS decoded tokens, by drafted trees wherever there is room: [L, b, H, TOKENS, e]."""
    outs, done = [], 0
    while done < TOKENS:
        parents, path = SHAPES[len(outs) % len(SHAPES)]
        tree, start = Tree(parents), PROMPT + done
        if max(tree.depths) + 1 > room(session) or len(path) > TOKENS - done:
            outs.append(decode(session, text, start, 1))
            done += 1
            continue
        begin_drafted(session, len(parents), columns(session.rows, start, len(parents)), tree)
        nodes = mixed(text, wrong, start, len(parents), path)
        read = torch.stack(list(layer_by_layer(session, nodes, 0, len(parents))))
        accept(session, path)
        outs.append(read[:, :, :, list(path)])
        done += len(path)
    return torch.cat(outs, dim=3)


@pytest.mark.parametrize("name", [name for name in everything() if not selects(name)])
def test_an_accepted_path_leaves_what_single_steps_leave(name: str) -> None:
    shape = geometry(windows=(None, 24, None))
    text, wrong = (Text.random(shape, PROMPT + TOKENS + NODES, seed=seed) for seed in (3, 4))
    single, several = (opened(shape, name, text) for _ in range(2))
    want, got = decode(single, text, PROMPT, TOKENS), by_trees(several, text, wrong)
    assert several.ledger.drafts["accepted"] > 20 and several.ledger.drafts["proposed"] > 100
    assert torch.allclose(got, want, atol=1e-5), float((got - want).abs().max())
    assert_alike(several, single)


def test_every_node_reads_as_its_path_read_alone() -> None:
    """All logits of a tree are those of forwards path by path (row 141's tree verification), of a window too."""
    shape = geometry(windows=(None, 24, None))
    text = Text.random(shape, PROMPT + 20, seed=3)
    for name in ("plain", "h2o(0.4, sinks=2, recent=6) | kivi(window=8, group=16)"):
        name = "" if name == "plain" else name
        for parents, _ in SHAPES[:5]:
            tree, session = Tree(parents), opened(shape, name, text)
            alone = session.fork()
            begin_drafted(session, len(parents), columns(1, PROMPT, len(parents)), tree)
            read = torch.stack(list(layer_by_layer(session, text, PROMPT, len(parents))))
            for node in range(len(parents)):
                path = [node]
                while path[0]:
                    path.insert(0, parents[path[0]])
                nodes = Text(*(x[..., [PROMPT + one for one in path], :] for x in (text.q, text.k, text.v)))
                other = alone.fork()
                for place in range(len(path)):
                    want = decode(other, nodes, place, 1)
                assert torch.allclose(read[:, :, :, node], want[:, :, :, 0], atol=1e-5), (name, parents, node)


def test_a_tree_can_be_taken_back_whole() -> None:
    shape = geometry(windows=(None, 24))
    text = Text.random(shape, PROMPT + 20)
    session = opened(shape, "h2o(0.3, sinks=2, recent=6)", text)
    before = state(session)
    begin_drafted(session, 4, tree=Tree((-1, 0, 0, 2)))
    list(layer_by_layer(session, text, PROMPT, 4))
    session.abort()
    assert not differences(state(session), before)


def test_an_interrupted_acceptance_is_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two stores."""
    shape = geometry(windows=(None, 24))
    text = Text.random(shape, PROMPT + 20)
    single = opened(shape, "int8", text)
    decode(
        single, Text(*(x[..., [*range(PROMPT), PROMPT, PROMPT + 2], :] for x in (text.q, text.k, text.v))), PROMPT, 2
    )
    for when in range(4):
        session = opened(shape, "int8", text)
        begin_drafted(session, 4, tree=Tree((-1, 0, 0, 2)))
        list(layer_by_layer(session, text, PROMPT, 4))
        store, calls = type(session.groups[0].store), iter(range(100))
        with monkeypatch.context() as patch:
            for verb in ("truncate", "append"):
                patch.setattr(store, verb, interrupted(getattr(store, verb), calls, when))
            with pytest.raises(KeyboardInterrupt):
                accept(session, (0, 2))
        accept(session, (0, 2))
        assert_alike(session, single)


def interrupted(verb: object, calls: object, when: int) -> object:
    def call(*given: object, **how: object) -> object:
        if next(calls) == when:
            raise KeyboardInterrupt
        return verb(*given, **how)

    return call


def test_what_cannot_be_a_tree_is_refused_by_name() -> None:
    shape = geometry()
    text = Text.random(shape, PROMPT + 80, rows=2)
    tree = Tree((-1, 0, 0))
    with pytest.raises(SessionError, match="'quest' chooses for every token by itself"):
        begin_drafted(opened(shape, "quest", text.rows([0])), 3, tree=tree)
    with pytest.raises(SessionError, match="2 rows go on together"):
        begin_drafted(opened(shape, "", text), 3, tree=tree)
    session = opened(shape, "", text.rows([0]))
    assert chains_only(session) is None and nodes_left(session) == NODES
    with pytest.raises(SessionError, match="65 drafted tokens are more than the 64"):
        begin_drafted(session, 65, tree=Tree((-1, *[0] * 64)))
    with pytest.raises(SessionError, match="17 drafted tokens are more than the 16"):
        begin_drafted(session, 18, tree=Tree((*range(-1, 16), 0)))
    with pytest.raises(HeadwiseError, match="Tree has 3 nodes, but there are 4 queries"):
        begin_drafted(session, 4, tree=tree)
    begin_drafted(session, 3, tree=tree)
    list(layer_by_layer(session, text.rows([0]), PROMPT, 3))
    for path in ((0, 1, 2), (1,), (), (0, 3), (0, -1)):
        with pytest.raises(SessionError, match="is no path through 3 drafted tokens"):
            accept(session, path)
    accept(session, (0, 2))


def test_nodes_may_be_more_than_the_tokens_left_before_an_eviction() -> None:
    """It is the path that counts: a tree of 64 nodes shortly before one evicts nothing."""
    shape = geometry()
    text = Text.random(shape, PROMPT + 200)
    session = opened(shape, "h2o(0.3, sinks=2, recent=6)", text)
    decode(session, text, PROMPT, 60)
    evictions = len(session.ledger.evictions)
    assert room(session) == 3
    begin_drafted(session, 64, tree=Tree((-1, *[0] * 63)))
    list(layer_by_layer(session, text, PROMPT + 60, 64))
    accept(session, (0, 40))
    assert len(session.ledger.evictions) == evictions and room(session) == 1
    decode(session, text, PROMPT + 62, 2)
    assert len(session.ledger.evictions) > evictions


@pytest.mark.parametrize("parents", [(), (0,), (-1, -1), (-1, 1), (-1, 0, 3, 2), (-1, -2)])
def test_what_is_no_tree_is_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(HeadwiseError, match="tree"):
        Tree(parents)


def test_layers_that_attend_within_chunks_have_chains_only() -> None:
    shape = geometry(windows=(None, 24))
    shape = replace(shape, layers=tuple(replace(one, chunked=one.window is not None) for one in shape.layers))
    session = opened(shape, "", Text.random(shape, PROMPT))
    with pytest.raises(SessionError, match="cannot be a tree here, as layers attend within chunks"):
        begin_drafted(session, 3, tree=Tree((-1, 0, 0)))
