"""A closed grammar of some two hundred words: English sentences that anybody could say, drawn from a seed.

Which sentences are held out of training is a property of the sentence alone, so that no seed and no number of them
mixes the two.
"""

import hashlib
import random
import re
from collections.abc import Iterator

HELD_OUT = 25  # one of so many sentences is never trained on

# A name of this table in braces stands for one of its lines; a word or a mark stands for itself.
RULES = {
    "sentence": """
        {person} {went} to the {place} {time}.
        {person} {went} to the {place} with {person}.
        {person} bought {number} {things} at the {place}.
        {person} bought a {color} {thing} and {number} {things}.
        {person} has a {quality} {animal} and {number} {things}.
        {person} likes {food} with {food}.
        {person} likes {food}, but {person} likes {food}.
        {person} eats {food} and {food} {daily}.
        {person} drinks {drink} {daily}.
        {person} is {doing} in the {room}.
        {person} is {doing} with {person} {today}.
        {person} was {feeling} {then}.
        {person} was {feeling}, because the {place} was {closed}.
        the {thing} is {where} the {furniture}.
        the {quality} {thing} is {where} the {color} {furniture}.
        the {animal} is sleeping {where} the {furniture}.
        the {color} {animal} ran to the {place}.
        there are {number} {things} in the {room}.
        there were {number} {animals} {where} the {place}.
        the weather is {weather} {today}.
        the weather was {weather} {then}.
        the {weather} weather will stay until {day}.
        it will be {weather} {soon}.
        it {rained} in the {place} {then}.
        the {vehicle} to the {place} leaves at {hour}.
        the {vehicle} from the {place} was {number} minutes late.
        {person} took the {vehicle} to the {place} at {hour}.
        the {place} is {closed} until {hour} {on_day}.
        please {do} the {door} {before} {meal}.
        please {give} the {thing} to {person}.
        please bring {number} {things} to the {place} {soon}.
        where is the {color} {thing}?
        where did {person} find the {thing}?
        can you see the {animal} {where} the {furniture}?
        will {person} come to the {place} {soon}?
        is {person} {feeling} {today}?
        {person} told {person} about the {quality} {thing}.
        {person} wrote a {quality} letter to {person}.
        {person} lives near the {place} with {number} {animals}.
        {person} {did} the {thing} {then}.
        {person} {did} the {color} {thing}, and {person} {did} the {things}.
        we {did} {number} {things} {then}.
        we will meet {person} at the {place} at {hour}.
        they {went} from the {place} to the {place} {on_day}.
        good morning {name}, the {drink} is {where} the {furniture}.
        thank you for the {things}, {name}.
    """,
    "person": "{name}; my {relative}; our {relative}; the {job}; the {age} {job}",
    "name": "Anna; Peter; Mary; Tom; David; Sarah",
    "relative": "mother; father; sister; brother; friend",
    "job": "teacher; doctor; farmer; driver; neighbor; child",
    "age": "old; young; new",
    "place": "{building}; bridge; river; beach; village; city",
    "room": "{building}; garden; kitchen; forest",
    "building": "market; station; school; library; hotel; park; museum",
    "went": "went; walked; drove; came back",
    "number": "two; three; four; five; six; seven; eight; nine; ten; eleven; twelve; twenty; thirty",
    "thing": "book; letter; picture; lamp; clock; basket; bag; hat; coat; phone; key",
    "things": "books; letters; pictures; boxes; chairs; apples; flowers; cups; keys; lemons",
    "furniture": "table; window; door; chair; box; bed",
    "door": "window; door; box; book",
    "animal": "dog; cat; horse; bird; rabbit",
    "animals": "dogs; cats; horses; birds; rabbits",
    "color": "red; blue; green; yellow; white; black",
    "quality": "small; large; new; beautiful; heavy; strange",
    "feeling": "happy; tired; hungry; late; busy; angry; at home",
    "closed": "open; closed",
    "food": "bread; rice; soup; cheese; fish; fruit; chicken; chocolate",
    "drink": "water; milk; coffee; tea; juice",
    "doing": "reading; writing; singing; cooking; working; waiting",
    "do": "open; close; clean",
    "give": "give; bring",
    "did": "found; painted; lost; sold; bought",
    "where": "under; behind; near; on; in front of",
    "weather": "cold; warm; sunny; cloudy; windy; wet",
    "rained": "rained; snowed",
    "vehicle": "train; bus; boat",
    "time": "{then}; {on_day}; {before} {meal}",
    "then": "yesterday; last night; last week; this morning; {on_day}",
    "today": "today; now; this evening; again",
    "soon": "tomorrow; next week; {on_day}; soon",
    "on_day": "on {day}; on {day} morning; every {day}",
    "day": "Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday",
    "daily": "every morning; in the evening; at {hour}; {before} work",
    "hour": "{o_clock} o'clock; half past {o_clock}; noon; midnight",
    "o_clock": "one; two; three; four; five; six; seven; eight; nine; ten; eleven; twelve",
    "before": "before; after",
    "meal": "breakfast; lunch; dinner",
}
_NAME = re.compile(r"\{(\w+)\}")


_CHOICES = {name: [one.strip() for one in re.split("[;\n]", rule) if one.strip()] for name, rule in RULES.items()}


def vocabulary() -> tuple[str, ...]:
    """All words of the grammar, lower case, in order."""
    lines = (line for choices in _CHOICES.values() for line in choices)
    return tuple(sorted({word for line in lines for word in words(_NAME.sub(" ", line))}))


def words(sentence: str) -> list[str]:
    """The words of a sentence, lower case, without marks."""
    return re.findall(r"[a-z']+", sentence.lower())


def is_held_out(sentence: str) -> bool:
    """Whether a sentence must stay out of training: by its words alone, whatever its marks and capitals are."""
    digest = hashlib.sha256(" ".join(words(sentence)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT == 0


def sentences(seed: int, held_out: bool = False) -> Iterator[str]:
    """Sentences without end, none of them twice: those to train on, or those that are held out."""
    rng, known = random.Random(seed), set()
    while True:
        sentence = _drawn(rng)
        if sentence not in known and is_held_out(sentence) == held_out:
            known.add(sentence)
            yield sentence


def _drawn(rng: random.Random) -> str:
    """One sentence; a rule that stands in it twice is not drawn alike both times."""
    line, used = rng.choice(_CHOICES["sentence"]), set()
    while found := _NAME.search(line):
        choices = [choice for choice in _CHOICES[found[1]] if choice not in used or "{" in choice]
        choice = rng.choice(choices)
        used.add(choice)
        line = line[: found.start()] + choice + line[found.end() :]
    return line[0].upper() + line[1:]
