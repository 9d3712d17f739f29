"""A seeded grammar of everyday situations with literal and sarcastic remarks: synthetic text that shows the pipe, not the phenomenon.

A remark is sarcastic where its praise does not fit what happened. The same praise after good news is literal (the hard negative), and
so is a plain complaint after bad news: neither the praise nor the bad news tells alone. All sentences are made up here.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness_paragraphs.compose import Comment, Fillers, Paragraph, compose, draw

BAD = (
    "The train was cancelled for the {n} time this week.",
    "My flight to {place} left without me after {n} hours in line.",
    "The printer jammed {n} times before the meeting.",
    "The roof started leaking right above {who}'s desk.",
    "{who} spilled coffee on the only copy of the report.",
    "The heating in {place} broke on the coldest night of the year.",
    "The shop in {place} sold {who} a laptop without a battery.",
    "They moved the exam to Sunday and told us {n} minutes before.",
    "The neighbours drilled from six in the morning for {n} days.",
    "{who} lost the keys {n} minutes after I handed them over.",
    "The update deleted {n} months of photos from my phone.",
    "The waiter forgot our table for {n} hours.",
    "The bus drove past {who} with its doors closed.",
    "It rained through all {n} days of our holiday in {place}.",
    "The hotel in {place} had given our room to somebody else.",
    "The support line kept {who} on hold for {n} hours and hung up.",
    "{who} scheduled {n} meetings over lunch.",
    "The dentist found {n} more cavities.",
)
GOOD = (
    "The train came early for the {n} time this week.",
    "They upgraded my flight to {place} without my asking.",
    "{who} fixed the printer in {n} minutes before the meeting.",
    "{who} brought fresh bread from the bakery for the whole floor.",
    "The doctor said that {who} is completely healthy again.",
    "The sun shone through all {n} days of our holiday in {place}.",
    "The hotel in {place} gave us the room with the balcony.",
    "{who} found the keys I had lost {n} weeks ago.",
    "The shop in {place} replaced {who}'s laptop for free.",
    "They gave all of us {n} extra days of leave.",
    "The neighbours invited {who} to dinner with {n} courses.",
    "My sister in {place} had her baby after {n} hours.",
    "{who} passed the exam with the best grade of {n} years.",
    "The bus driver waited when {who} ran for the stop.",
    "The old photos, {n} boxes of them, turned up unharmed.",
    "The council in {place} opened the park {n} weeks early.",
)
PRAISE = (
    "{open}, exactly what {subject} needed {when}.",
    "{open}, this is {degree} the best thing that could happen {when}.",
    "{open}, {subject} could not be happier {when}.",
    "{open}, what a {degree} perfect start {when}.",
    "{open}, somebody deserves a medal for that {when}.",
    "{open}, my favourite way to spend the time {when}.",
)
COMPLAINT = (
    "{subject} was {degree} annoyed about it {when}.",
    "It ruined the mood {when}, and {subject} said so.",
    "{subject} would like an apology {when}.",
    "That was {degree} disappointing {when}.",
    "{subject} had to start all over again {when}.",
    "It cost us a lot of patience {when}.",
)
NEUTRAL = (
    "The library in {place} opens at {n} on weekdays.",
    "{who} usually takes the stairs to floor {n}.",
    "The recipe asks for {n} eggs and a cup of flour.",
    "There are {n} chairs in the room next to the kitchen.",
    "{who} moved to {place} about {n} years ago.",
    "The report has {n} pages and a short appendix.",
    "Line {n} goes from the station to {place}.",
    "{who} reads the paper in the morning.",
    "The garden in {place} has {n} old apple trees.",
    "The course in {place} takes {n} weeks.",
)
OPEN = (
    "Great",
    "Wonderful",
    "Fantastic",
    "Oh, brilliant",
    "Lovely",
    "How delightful",
    "Just perfect",
    "Well, amazing",
    "Marvellous",
)
SUBJECT = ("I", "our team", "my family", "everyone here", "the whole office", "my flatmate")
WHEN = ("today", "this morning", "on a Monday", "this week", "after such a month", "right before the weekend", "at this hour")
DEGREE = ("really", "truly", "absolutely", "quite", "honestly")
WHO = ("Anna", "Ben", "Chidi", "Dana", "Elif", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kofi", "Lena")
PLACE = ("Lisbon", "Leeds", "Osaka", "Nairobi", "Bergen", "Quito", "Turin", "Halifax", "Pune", "Graz")
KINDS = (("bad", "praise", True), ("good", "praise", False), ("bad", "complaint", False), ("bad", "praise", True))
"""(what happened, the remark, sarcastic): half of the paragraphs are sarcastic, a quarter each is a hard negative of its kind."""


def fill(patterns: Sequence[str], seed: int, *words: str) -> str:
    """A sentence: one of the patterns with its slots drawn."""
    slots = {"open": OPEN, "subject": SUBJECT, "when": WHEN, "degree": DEGREE, "who": WHO, "place": PLACE}
    chosen = {slot: values[draw(seed, slot, *words) % len(values)] for slot, values in slots.items()}
    made = patterns[draw(seed, "pattern", *words) % len(patterns)].format(n=2 + draw(seed, "n", *words) % 8, **chosen)
    return made[0].upper() + made[1:]


def sentences(name: str, number: int, seed: int) -> tuple[str, Comment]:
    """(what happened, the remark on it, with its concept if it is sarcastic)."""
    event, remark, sarcastic = KINDS[number % len(KINDS)]
    happened = fill({"bad": BAD, "good": GOOD}[event], seed, name, "event")
    said = fill({"praise": PRAISE, "complaint": COMPLAINT}[remark], seed, name, "remark")
    return happened, Comment(name, said, ("sarcasm",) if sarcastic else ())


def paragraph(happened: str, said: Comment, fillers: Fillers, seed: int) -> Paragraph:
    """The situation and its remark among neutral sentences; the remark is the span, if it is sarcastic."""
    name = said.id
    count = 2 + draw(seed, "length", name) % 3
    place = draw(seed, "place", name) % (count + 1)
    context = fillers.deal(count)
    context.insert(place, Comment(f"{name}-event", happened))
    return compose(said, context, place + 1)


def neutral(split: str, seed: int, count: int = 60) -> list[Comment]:
    """Different neutral sentences for a split."""
    made = {fill(NEUTRAL, seed, split, "neutral", str(i)): i for i in range(count)}
    return [Comment(f"{split}-neutral-{i}", text) for text, i in made.items()]
