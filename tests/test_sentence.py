"""Text of recipes and tasks: read without surprises, written so that it reads back as the same, exactly."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwise.assets import embedded_plan
from headwise.cache.tiers import given_tier
from headwise.errors import HeadwiseError, RecipeError, SessionError
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import all_methods
from headwise.sentence import LONGEST, Call, read_call, read_calls, written
from headwise.shapes import MOST_BYTES, MOST_TOKENS, Amount, exact_bytes, parse_bytes
from headwise.tasks.taskbook import build_task
from tests.knob_values import declared, right

EXAMPLE = "write it like this"
VALUES = (
    st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
    | st.text(st.characters(), max_size=20)  # lone surrogates among them
    | st.builds(lambda n: Amount(bytes=n), st.integers(1, MOST_BYTES))
    | st.builds(Amount, st.floats(0, 1, exclude_min=True), st.integers(1, MOST_TOKENS))
)
NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=8).filter(lambda x: x not in ("True", "False", "None"))
# what recipes are made of, so that most of what is drawn is nearly one
WORDS = ("dense", "0.2", "64MiB", "1e999", "1e-5", "nan")
SCRAPS = st.sampled_from([*"()|,=+-'\"\\. \n\t#[]{}:;*", *all_methods(), *WORDS])


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, st.lists(VALUES, max_size=3), st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1))
def test_calls_read_back(drawn: list[tuple[str, list[Any], dict[str, Any]]]) -> None:
    text = " | ".join(
        f"{name}({', '.join([*map(written, args), *(f'{knob}={written(value)}' for knob, value in kwargs.items())])})"
        for name, args, kwargs in drawn
    )
    read = read_calls(text, EXAMPLE)
    assert [(one.name, one.args, one.kwargs) for one in read] == [(n, a, k) for n, a, k in drawn]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.lists(SCRAPS, max_size=14).map("".join))
@example("snapkv({[]:1})")
@example("keydiff('" + "9" * 400 + "GiB')")
@example("snapkv(" + "9" * 5000 + ")")
@example("s2(1e999)")
@example("snapkv(" + "(" * 500 + ")")
@example("snapkv(" + "-" * 50_000 + "1)")
@example("snapkv(" + "[" * 50_000)
@example("snapkv(0.2" + " | int8" * 10_000)
@example("a" * (LONGEST + 1))
@example("snapkv(1\u212a\u0130B)")  # a Kelvin sign and a dotted I
@example("snapkv(\u0663MiB)")  # an Arabic digit
@example("shot_kv(kind='\\N{nothing}')")
@example("shot_kv(kind='\x00\ud800')")
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    try:
        recipe = Recipe.parse(text)
    except RecipeError as error:
        assert len(str(error)) < 1000
    else:
        assert Recipe.parse(str(recipe)) == recipe


@settings(deadline=None)
@given(st.lists(SCRAPS, max_size=10).map("".join))
@example(":a")
@example(".a:b")
def test_any_text_is_a_task_or_an_error_of_ours(text: str) -> None:
    try:
        build_task(text)
    except HeadwiseError as error:
        assert len(str(error)) < 1000


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_recipes_of_several_parts_read_back(data: st.DataObject) -> None:
    drawn = [data.draw(st.sampled_from(list(all_methods().values()))) for _ in range(4)]
    parts: dict[str, Any] = {}
    for cls in drawn:
        knobs = data.draw(st.fixed_dictionaries({}, optional={k: right(hint) for k, hint in declared(cls).items()}))
        try:
            parts[cls.part] = cls(**knobs)
        except RecipeError:  # knobs that contradict each other
            continue
    try:
        recipe = Recipe(**parts)
    except RecipeError:  # parts that do
        return
    assert Recipe.parse(str(recipe)) == recipe
    assert Recipe.parse(str(recipe).replace(" | ", "|")) == recipe


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("snapkv", Amount(share=1.0)),
        ("snapkv()", Amount(share=1.0)),
        (" snapkv ( 0.25 , ) ", Amount(share=0.25)),
        ("snapkv(0.9999999)", Amount(share=0.9999999)),
        ("snapkv(1.0)", Amount(share=1.0)),
        ("snapkv(1)", Amount(tokens=1)),
        ("snapkv(1_024)", Amount(tokens=1024)),
        ("snapkv(0x400)", Amount(tokens=1024)),
        ("snapkv(.5)", Amount(share=0.5)),
        ("snapkv(5e-324)", Amount(share=5e-324)),
        ("snapkv(budget=+1e-5)", Amount(share=1e-5)),
        ("snapkv(64MiB)", Amount(bytes=64 << 20)),
        ("snapkv(64 MiB)", Amount(bytes=64 << 20)),
        ("snapkv(1.5GiB)", Amount(bytes=3 << 29)),
        ("snapkv(2gb)", Amount(bytes=2 * 10**9)),
        ("snapkv('64MiB')", Amount(bytes=64 << 20)),
        ('snapkv("64 MiB")', Amount(bytes=64 << 20)),
        ("snapkv(64 + 0.25)", Amount(share=0.25, tokens=64)),
        ("snapkv(0.25+64)", Amount(share=0.25, tokens=64)),
    ],
)
def test_budgets(text: str, means: Amount) -> None:
    recipe = Recipe.parse(text)
    assert recipe.evict.budget == means
    assert Recipe.parse(str(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("snapkv(64iB)", "'64iB'.*like 512MiB"),
        ("snapkv(64XB)", "'64XB' is neither a number nor a size such as 64MiB"),
        ("snapkv('64iB')", "'64iB'.*like 512MiB"),
        ("snapkv(99999999999GiB)", "like 512MiB"),
        ("snapkv(0B)", "keeps nothing; give 1 or more"),
        ("snapkv(-64MiB)", "'64MiB' stands where a number belongs"),
        ("snapkv(1 + 2)", "no number of tokens plus a share, such as 64 . 0.25"),
        ("snapkv(64 + 1.25)", "share must be above 0 and at most 1.0, got 1.25"),
        ("snapkv(0.2", r"after '0.2' a comma or \) is missing"),
        ("snapkv(0.2))", r"nothing can follow '\)'"),
        ("snapkv 0.2", "nothing can follow 'snapkv'"),
        ("snapkv(0.2,, recent=3)", "',' stands where a value belongs"),
        ("snapkv | | int8", "a part is empty"),
        ("shot_kv(kind=example)", "put quotes around it: 'example'"),
        ("shot_kv(kind=64MiB)", "kind must be a valid string, got 64MiB"),
        ("snapkv(recent=3, 0.2)", "a value without a name cannot follow named ones"),
        ("snapkv(recent=3, recent=3)", "parameter 'recent' is given twice"),
        ("snapkv([0.2])", r"'\[' stands where a value belongs"),
        ("0.2", "'0.2' stands where a name belongs"),
        ("pyramid(2)", "nothing is evicted; add a part such as snapkv"),
        ("snapkv | h2o", "both evict methods"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(text)


def test_words_with_signs_in_them_are_read_whole() -> None:
    for word in ("a|b", "it's", '"', "\\", "a, b)", "ü日本", "\u2028\x85\x0b", " ", "64MiB"):
        recipe = Recipe.parse(f"shot_kv(kind={word!r}) | int8")
        assert recipe.evict.kind == word
        assert Recipe.parse(str(recipe)) == recipe


@settings(deadline=None)
@given(st.integers(1, MOST_BYTES))
def test_exact_bytes_read_back(count: int) -> None:
    assert parse_bytes(exact_bytes(count)) == count


def test_sizes_are_exact_and_bounded() -> None:
    assert parse_bytes("9007199254740993B") == 2**53 + 1
    assert parse_bytes(" 0.5 kib ") == 512
    for text in ("", "B", "iB", "64iB", "1e3MiB", "-1MiB", "1.MiB", "\u0663MiB", "1\u212aB", "9" * 500 + "GiB"):
        with pytest.raises(HeadwiseError, match="like 512MiB or 2GB"):
            parse_bytes(text)
    for resident in ("64iB", "9" * 500 + "GiB"):
        with pytest.raises(HeadwiseError, match="like 512MiB or 2GB"):
            given_tier(resident, None)
    for resident in (0, -1, 2.5, "0B"):
        with pytest.raises(SessionError, match="write it like '64MiB'"):
            given_tier(resident, None)


def test_a_call_of_several_parts_is_none() -> None:
    assert read_call("passkey(depths=3)", EXAMPLE) == Call("passkey", [], {"depths": 3})
    with pytest.raises(RecipeError, match="several parts"):
        read_call("passkey | passkey", EXAMPLE)


# as they were made: what was saved under a plan, a session or a cell of a comparison, is found by its digest
DIGESTS = {0.05: "312a2299ea455b5e", 0.1: "a84d332cef5f7222", 0.25: "40cf7b16d7f53810"}


@pytest.mark.parametrize("share", DIGESTS)
def test_the_ready_plans_keep_their_digests_and_their_checks(share: float) -> None:
    path = embedded_plan(share)
    assert path is not None
    plan = Plan.read(path)
    assert plan.digest == DIGESTS[share]
    assert plan.quality["check"]["passed"] == (share > 0.05)


def test_plans_that_differ_a_little_have_digests_that_differ() -> None:
    shape = Geometry.uniform(4, 2, 32, 16, (None, None), 4096)
    plans = [Plan.uniform(shape, f"snapkv({share!r})") for share in (0.9999999, 0.99999999, 1.0)]
    assert len({plan.digest for plan in plans}) == 3
