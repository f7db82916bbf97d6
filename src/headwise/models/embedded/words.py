"""Word lists of the synthetic facts (ASCII only), and which keys are held out for evaluation."""

from __future__ import annotations

import zlib

HELD_OUT_SHARE = 10  # one key in this many is never trained on


def held_out(key: str) -> bool:
    """True for the keys (about 10 %) that training never states or asks."""
    return zlib.crc32(key.encode()) % HELD_OUT_SHARE == 0


def _list(text: str, separator: str = " ") -> tuple[str, ...]:
    """The words of a long string."""
    return tuple(text.split(separator))


ADJECTIVES = _list(
    "old new red blue green grey white black golden silver broken quiet distant hidden empty narrow wooden iron "
    "stone painted ancient royal northern southern eastern western little great crooked sunny dusty frozen lonely "
    "famous forgotten private public upper lower rusty gentle proud bitter noble humble"
)
NOUNS = _list(
    "lighthouse harbour bridge castle garden library museum station market tower school theatre chapel mill farm "
    "bakery prison palace hotel inn factory warehouse cottage village river island valley forest mountain meadow "
    "wagon ship train carriage clock piano mirror violin cabinet desk lantern telescope compass statue fountain "
    "orchard stable barn cellar attic gallery cathedral monastery hospital workshop tavern archive vault ferry canal"
)
NUMBER_ATTRIBUTES = _list(
    "secret number|access code|serial number|registration number|magic number|pass code|locker number|"
    "security code|reference number|file number|key number|ticket number|special number|account number",
    "|",
)
WORD_ATTRIBUTES = _list(
    "secret word|password|favourite colour|favourite fruit|favourite animal|home town|trade|hidden treasure",
    "|",
)
FIRST_NAMES = _list(
    "Anna Maria Clara Emma Julia Laura Helen Alice Ruth Nora Ida Rosa Lucy Sarah Martha Edith Grace Agnes Flora "
    "Victor Robert Henry Thomas George Arthur Walter Oscar Martin Peter Simon Hugo Felix Edgar Albert Samuel Daniel "
    "David Philip Adam Leo Paul Carl Frank Jacob Louis Max"
)
LAST_NAMES = _list(
    "Berg Lopez Turner Fisher Walker Baker Carter Mason Hunter Potter Cooper Taylor Parker Porter Miller Weaver "
    "Archer Barker Chandler Dyer Fletcher Gardner Harper Keller Lambert Marsh Norton Osborne Palmer Quinn Reeves "
    "Sawyer Tanner Underwood Vernon Wright Young Abbott Bishop Cole Drake Ellis Foster Grant Hayes"
)
VALUE_WORDS = _list(
    "turquoise crimson violet amber ivory scarlet indigo orange purple yellow brown pink apple pear cherry plum "
    "lemon peach grape melon fig olive walnut almond tiger eagle falcon otter badger rabbit beaver dolphin turtle "
    "horse camel spider parrot raven swan wolf bear fox deer owl Paris London Vienna Madrid Lisbon Berlin Dublin "
    "Oslo Athens Cairo Boston Chicago Geneva Venice Florence Naples Prague Warsaw Moscow Toronto carpenter teacher "
    "doctor sailor painter lawyer banker tailor weaver miner farmer soldier singer butcher printer diamond ruby "
    "emerald pearl crown sword shield helmet letter map key candle barrel basket kettle hammer needle ribbon feather "
    "button whistle trumpet drum flute anchor ladder saddle bottle lamp"
)
COLOURS = _list("red blue green grey white black yellow brown purple pink orange golden")
CONTAINERS = _list("box chest bag basket drawer crate trunk jar case barrel sack pot")
MATERIALS = _list("silver golden copper iron glass wooden paper leather ivory stone silk clay bronze marble wax tin")
THINGS = _list(
    "coin ring key map letter spoon cup knife watch pen book doll button comb bell bracelet candle whistle brush "
    "thimble"
)
ROOMS = _list(
    "kitchen garden cellar attic library bedroom bathroom hall garage stable office pantry balcony nursery workshop "
    "laundry chapel kennel greenhouse barn parlour studio dungeon tower courtyard corridor"
)
