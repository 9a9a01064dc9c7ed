"""Write the quickstart's language: the text its base model is pre-trained on, and the rows of its task.

    python quickstart/text.py            # rewrites quickstart/data/train.jsonl and quickstart/data/heldout.jsonl

A small shop world: people order things. In the base's text an order is *confirmed in a sentence*; the task turns it
into *one JSON object*, which the base has never seen done. A fixed sixth of the (colour, item) pairs is held out:
they stand neither in the base's text nor in the training rows, and every held-out row is about one of them, so a
right answer must be composed from parts. `tests/test_quickstart_data.py` proves it on the whole text.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

NAMES = """
Ada Ben Cleo Dan Ella Finn Gina Hugo Iris Jack Kira Liam Mia Noah Olga Paul Rosa Sam Tess Umar Vera Will Yara Zoe
""".split()
CITIES = "Oslo Rome Lima Cairo Paris Delhi Tokyo Quito Dakar Berlin Madrid Sydney Boston Nairobi Vienna Lisbon".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
COLOURS = "red blue green black white yellow pink grey brown purple".split()
ITEMS = """
lamp cup chair book clock table pillow bottle basket mirror jacket ticket
wheel button candle carpet drum kettle ladder pencil ring rope towel wallet
""".split()
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
ANIMALS = {
    "cow": (4, "moo"),
    "hen": (2, "cluck"),
    "dog": (4, "woof"),
    "duck": (2, "quack"),
    "cat": (4, "meow"),
    "bee": (6, "buzz"),
    "sheep": (4, "baa"),
    "owl": (2, "hoot"),
}
ORDERS = (
    "{name} from {city} wants {count} {colour} {items} by {day}.",
    "Please send {count} {colour} {items} to {name} in {city} on {day}.",
    "By {day}, {name} needs {count} {colour} {items} in {city}.",
    "Order for {name}, {city}: {count} {colour} {items}, {day}.",
)
SMALL_TALK = (
    ("Hello!", "Hello! What would you like to order?"),
    ("Good morning.", "Good morning! How can I help you?"),
    ("Who are you?", "I am the clerk of a small shop."),
    ("Thank you!", "You are welcome."),
    ("What do you sell?", "I sell many things in many colours."),
    ("Goodbye.", "Goodbye! Come again soon."),
)

Pair = tuple[str, str]
Chat = list[dict[str, str]]

PAIRS: list[Pair] = [(colour, item) for colour in COLOURS for item in ITEMS]
HELDOUT_PAIRS: list[Pair] = [
    (colour, item) for c, colour in enumerate(COLOURS) for i, item in enumerate(ITEMS) if (5 * c + i) % 6 == 0
]
SEEN_PAIRS: list[Pair] = [pair for pair in PAIRS if pair not in HELDOUT_PAIRS]


def order(rng: random.Random, pairs: list[Pair]) -> dict[str, str]:
    """Draw one order: its six facts as words. The count is two to twelve, so the item is always plural."""
    colour, item = rng.choice(pairs)
    return {
        "name": rng.choice(NAMES),
        "city": rng.choice(CITIES),
        "day": rng.choice(DAYS),
        "colour": colour,
        "item": item,
        "items": item + "s",
        "count": rng.choice(NUMBERS[1:]),
    }


def digits(word: str) -> int:
    """Number word, one to twelve, as an integer."""
    return NUMBERS.index(word) + 1


def task_row(rng: random.Random, pairs: list[Pair]) -> dict[str, Chat]:
    """One row of the task: an order in a sentence, answered by one JSON object on one line."""
    facts = order(rng, pairs)
    record = {
        "name": facts["name"],
        "city": facts["city"],
        "item": facts["item"],
        "colour": facts["colour"],
        "count": digits(facts["count"]),
        "day": facts["day"],
    }
    return {"messages": chat(rng.choice(ORDERS).format(**facts), json.dumps(record))}


def chat(*turns: str) -> Chat:
    """Messages from alternating user and assistant texts."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def confirmation(facts: dict[str, str]) -> str:
    """What the base says to an order."""
    return "Thank you, {name}. {Count} {colour} {items} will be in {city} on {day}.".format(
        Count=facts["count"].capitalize(), **facts
    )


def order_questions(facts: dict[str, str]) -> list[tuple[str, str]]:
    """Questions about one order with their answers."""
    return [
        ("Who is it for?", "It is for {name}.".format(**facts)),
        ("Which city?", "{city}.".format(**facts)),
        ("Which day?", "On {day}.".format(**facts)),
        ("Which colour?", "{colour}.".format(**facts)),
        ("How many?", "{count}.".format(**facts)),
        ("How many, as a number?", f"{digits(facts['count'])}."),
        ("What is ordered?", "{count} {colour} {items}.".format(**facts)),
        ("What is one of them?", "A {item}.".format(**facts)),
    ]


def conversation(rng: random.Random) -> Chat:
    """A chat about an order: confirmed, then asked about, or asked about at once."""
    facts = order(rng, SEEN_PAIRS)
    questions = rng.sample(order_questions(facts), rng.randint(1, 3))
    sentence = rng.choice(ORDERS).format(**facts)
    if rng.random() < 0.5:
        turns = [sentence, confirmation(facts)]
    else:
        turns = [f"{sentence} {questions[0][0]}", questions[0][1]]
        questions = questions[1:]
    for question, answer in questions:
        turns += [question, answer]
    return chat(*turns)


def two_people(rng: random.Random) -> Chat:
    """Two facts and a question about one of them: the answer must be found by its name."""
    first, second = order(rng, SEEN_PAIRS), order(rng, SEEN_PAIRS)
    while second["name"] == first["name"]:
        second["name"] = rng.choice(NAMES)
    asked = rng.choice((first, second))
    told = "{name} has {count} {colour} {items} in {city}."
    return chat(
        f"{told.format(**first)} {told.format(**second)} What does {asked['name']} have?",
        "{name} has {count} {colour} {items}.".format(**asked),
    )


def lesson(rng: random.Random) -> Chat:
    """Small lessons on single words: numbers, one and many."""
    number, item = rng.choice(NUMBERS), rng.choice(ITEMS)
    lessons = (
        chat(f"What is {number} as a number?", f"{digits(number)}."),
        chat(f"How do you spell {digits(number)}?", f"{number}."),
        chat(f"What is one of the {item}s?", f"A {item}."),
        chat(f"What are many of a {item}?", f"{item}s."),
    )
    return rng.choice(lessons)


def some_words(rng: random.Random) -> list[str]:
    """One to twelve words of every kind, a colour never before an item."""
    words: list[str] = []
    for _ in range(rng.randint(1, 12)):
        kinds = (NAMES, CITIES, DAYS, NUMBERS, COLOURS, ITEMS)
        words.append(rng.choice(rng.choice(kinds[:5] if words and words[-1] in COLOURS else kinds)))
    return words


def echo(rng: random.Random) -> Chat:
    """Words said again, as they are or as a JSON list: what copying is learned from."""
    words = some_words(rng)
    if rng.random() < 0.5:
        return chat("Repeat: " + " ".join(words), " ".join(words))
    return chat("Make a list: " + " ".join(words), json.dumps(words))


def record(rng: random.Random) -> Chat:
    """JSON about other things than orders: the base knows its marks, not this use of them."""
    animal = rng.choice(sorted(ANIMALS))
    legs, sound = ANIMALS[animal]
    facts, shelf = order(rng, SEEN_PAIRS), rng.randint(1, 12)
    number = digits(facts["count"])
    label = {"shelf": shelf, "item": facts["item"], "colour": facts["colour"], "count": number}
    note = {"name": facts["name"], "day": facts["day"], "city": facts["city"]}
    kinds = (
        chat(f"Give me a card for the {animal}.", json.dumps({"animal": animal, "legs": legs, "sound": sound})),
        chat("Shelf {} holds {count} {colour} {items}. Write its label.".format(shelf, **facts), json.dumps(label)),
        chat("{name} works on {day} in {city}. Write a note.".format(**facts), json.dumps(note)),
    )
    return rng.choice(kinds)


def story(rng: random.Random) -> str:
    """A few plain sentences, as continued text."""
    facts = order(rng, SEEN_PAIRS)
    other = rng.choice([name for name in NAMES if name != facts["name"]])
    return (
        "{name} lives in {city}. On {day} {name} went to the shop and bought {count} {colour} {items}. "
        "{other} asked for one {item}, so {name} gave {other} one {colour} {item}."
    ).format(other=other, **facts)


def documents(count: int, seed: int) -> Iterator[Chat | str]:
    """The base's text: chats as messages, stories as strings; the same for the same seed."""
    rng = random.Random(seed)
    kinds = (conversation, conversation, conversation, echo, echo, echo, record, record, two_people, lesson, story)
    for _ in range(count):
        if rng.random() < 0.03:
            yield chat(*rng.choice(SMALL_TALK))
        else:
            yield rng.choice(kinds)(rng)


def task_rows(count: int, pairs: list[Pair], seed: int) -> list[dict[str, Chat]]:
    """Distinct rows of the task about the given pairs."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, Chat]] = {}
    while len(rows) < count:
        row = task_row(rng, pairs)
        rows[row["messages"][0]["content"]] = row
    return list(rows.values())


def main() -> None:
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    for name, count, pairs, seed in (("train", 480, SEEN_PAIRS, 1), ("heldout", 100, HELDOUT_PAIRS, 2)):
        rows = task_rows(count, pairs, seed)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{folder / name}.jsonl: {count} rows")


if __name__ == "__main__":
    main()
